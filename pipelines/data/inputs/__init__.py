"""Where sources come from: folders, globs, object stores, manifests; and remote files made local."""
