"""``gkd-rl ablate``: a grid of settings with several seeds, and what came of them."""
