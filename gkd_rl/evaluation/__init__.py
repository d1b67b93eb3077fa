"""Judging a model on held-out examples with the rewards that train it."""
