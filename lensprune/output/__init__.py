"""Files, plain text, tables, pages and drawing: the building blocks of every view. Knows no feature."""
