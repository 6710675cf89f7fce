"""Whole studies: several sweeps with stated choices, and one page about them."""
