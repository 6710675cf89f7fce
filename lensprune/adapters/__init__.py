"""Adapters to other evaluation tools; each needs its own extra."""
