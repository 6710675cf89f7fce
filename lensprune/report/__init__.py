"""What a user sees of results: figures, pages, and what commands print."""
