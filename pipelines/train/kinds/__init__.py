"""What can be trained: a folder for each kind, with the recipe it takes (config.py) and what it does (kind.py)."""
