"""Tasks: the bundled ones of instruction tuning, and `template` for those that a recipe words."""
