"""Tasks: the bundled ones of instruction tuning, and `template` for tasks worded in a recipe."""
