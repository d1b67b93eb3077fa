"""Sampling completions and storing them."""
