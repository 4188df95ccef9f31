"""Judging a model: metrics over plain arrays, and the protocols that use them."""
