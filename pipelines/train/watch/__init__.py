"""Watching a run: a rank that hangs, a wish to stop, what is restarted and why."""
