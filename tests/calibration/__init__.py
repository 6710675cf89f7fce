"""Sizes, powers and coverages of the statistics by simulation, beside those of the methods that they replaced."""
