"""Files, plain text, tables, pages and drawing: what every view is made of. Knows no feature."""
