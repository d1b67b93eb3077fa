"""What a run would take, before it is started: ``gkd-rl train CONFIG --dry-run``."""
