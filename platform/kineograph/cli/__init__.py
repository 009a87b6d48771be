"""`kineo`: one file per command group, and the only place that knows every part."""
