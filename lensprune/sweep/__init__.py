"""Plan, run and store a study."""
