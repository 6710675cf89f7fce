"""Load a model, or wrap one that the user loaded."""
