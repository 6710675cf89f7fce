"""The look of figures, and what a figure is."""
