"""Finding the same content twice: fingerprints of sources, their matches, and near clips by embedding."""
