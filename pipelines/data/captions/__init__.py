"""Where a clip's caption comes from, and what binds the two."""
