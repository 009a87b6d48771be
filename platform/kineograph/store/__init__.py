"""What the pipelines meet in: the ledger, the shards, the manifest, and how files are committed."""
