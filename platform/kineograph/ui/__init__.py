"""The read-only dashboard: a start page over the runs of a directory, their reports, and MLflow beside it."""
