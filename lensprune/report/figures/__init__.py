"""Figures, one a module, and which kinds of them a result has."""
