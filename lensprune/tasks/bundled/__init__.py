"""Tasks whose rows ship with the package."""
