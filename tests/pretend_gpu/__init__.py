"""The package on a pretend GPU, on machines without one: ``LENSPRUNE_TEST_DEVICE=pretend pytest tests/pretend_gpu``."""
