"""What a sweep would cost, known before it runs."""

from lensprune.planning.sweep_plan import Plan, plan

__all__ = ["Plan", "plan"]
