"""Whole studies: several sweeps with documented choices, and one page about all of them."""
