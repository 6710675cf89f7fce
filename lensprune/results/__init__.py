"""What is seen of a run: its tables, figures, page and files."""
