"""Reading and writing media: probe, guarded decode, encode, frame sampling, bucket geometry."""
