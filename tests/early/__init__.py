"""Sweeps that stop early beside sweeps of all items, on a real model: verdicts and processor time."""
