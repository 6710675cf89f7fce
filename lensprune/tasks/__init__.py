"""Benchmarks: rows, prompts, targets."""
