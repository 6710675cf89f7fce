"""Run requests under variants."""
