"""What can be found wrong with a run before it costs anything: ``gkd-rl check CONFIG``."""
