"""The three pipelines: data, train, eval. They do not import each other."""
