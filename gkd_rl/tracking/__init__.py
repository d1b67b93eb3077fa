"""Trackers of a run, by Accelerate's classes for them."""
