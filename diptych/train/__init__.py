"""Training: what a run is, the loop, and what it keeps on disk."""
