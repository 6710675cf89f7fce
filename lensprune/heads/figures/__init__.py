"""Figures of heads."""
