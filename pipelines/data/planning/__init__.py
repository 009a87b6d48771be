"""Buckets, what a run holds in them and would hold in others, and what a run will take."""
