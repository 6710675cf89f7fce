"""Run variants on tasks, store the outcomes, and continue where it stopped."""
