"""Finding pictures by their vectors."""
