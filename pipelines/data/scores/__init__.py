"""Models that score clips on their sampled frames, in batches. Each file is one model with its config."""
