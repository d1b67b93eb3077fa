"""Tasks: where prompts and references come from, and how answers are judged."""
