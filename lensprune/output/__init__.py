"""Files, plain text, tables, pages and drawing: building blocks of all views, independent of features."""
