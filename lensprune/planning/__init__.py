"""Estimate the cost of a sweep before it runs."""

from lensprune.planning.result import Plan
from lensprune.planning.sweep_plan import plan

__all__ = ["Plan", "plan"]
