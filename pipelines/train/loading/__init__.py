"""Planned clips, read ahead of the steps that use them and decoded in processes beside the rank."""
