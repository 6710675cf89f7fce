"""Tasks whose rows ship with the package or are made by a seed."""
