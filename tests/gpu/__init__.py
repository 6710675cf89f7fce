"""What only a real GPU can show: ``python -m tests.gpu``."""
