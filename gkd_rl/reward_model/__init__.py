"""Reward models trained from preferences: pairs, model, training, report."""
