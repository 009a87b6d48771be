"""Checkpoints of a run: written beside training, kept by policy."""
