"""How good estimates by each gradient rule are, against exact removal and patching: ``python -m tests.estimates``."""
