"""Figures of a run, each from a table."""
