"""Run variants on tasks, store the outcomes, and resume."""
