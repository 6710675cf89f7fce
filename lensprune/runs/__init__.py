"""A run as data: its spec, its records and where they are stored."""
