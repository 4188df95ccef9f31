"""Finding pictures by their vectors: in a folder of them, or in a library on disk."""
