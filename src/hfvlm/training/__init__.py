"""Training from a recipe: a YAML file says what is trained, on what, and how; every mistake in it is found first."""
