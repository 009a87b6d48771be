"""What `kineo generate` does: given frames, long videos as files, and files that tell how they were made."""
