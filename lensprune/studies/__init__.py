"""Whole studies: several sweeps with stated choices, and one page on all of them."""
