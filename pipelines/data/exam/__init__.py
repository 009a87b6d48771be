"""A run held against the truth of a synthetic corpus."""
