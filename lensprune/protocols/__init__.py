"""How an item is asked and scored."""
