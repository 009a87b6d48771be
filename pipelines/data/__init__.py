"""The curation pipeline: raw videos to shards, on Ray Data."""
