"""Views of a run: its tables, figures, page and files."""
