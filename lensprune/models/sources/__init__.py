"""Where a model's weights and tokenizer come from."""
