"""Tests run on the CPU, whatever the machine has; LENSPRUNE_TEST_DEVICE=cuda runs those that ask for a device there."""

import os
import sys

DEVICE = os.environ.get("LENSPRUNE_TEST_DEVICE", "cpu")

# Benchmarks lie in this package too, and may use what the machine has.
if DEVICE == "cpu" and "pytest" in sys.modules:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Read when Triton is imported: its kernels then run on the CPU, one statement after another.
    os.environ["TRITON_INTERPRET"] = "1"
