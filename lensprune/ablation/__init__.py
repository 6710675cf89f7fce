"""Where and how a model is changed."""
