"""Plan a job and run it somewhere: as a child process on this machine, or on a running Ray cluster."""
