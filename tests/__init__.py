"""Tests run on the CPU, whatever the machine has; LENSPRUNE_TEST_DEVICE=cuda runs those that ask for a device there."""

import os

DEVICE = os.environ.get("LENSPRUNE_TEST_DEVICE", "cpu")

if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Read when Triton is imported: its kernels then run on the CPU, one statement after another.
    os.environ["TRITON_INTERPRET"] = "1"
