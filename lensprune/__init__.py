"""lensprune: which layers and heads a language model needs, and whether the answer depends on how you measure."""

__version__ = "0.1.0"
