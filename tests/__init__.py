"""Tests run on the CPU, whatever the machine has; LENSPRUNE_TEST_DEVICE=cuda runs those that ask for a device there,
and LENSPRUNE_TEST_DEVICE=pretend on a pretend GPU, for machines that have none."""

import os
import sys

_ASKED = os.environ.get("LENSPRUNE_TEST_DEVICE", "cpu")
PRETEND = _ASKED == "pretend"
DEVICE = "cuda" if PRETEND else _ASKED

# Benchmarks lie in this package too, and may use what the machine has.
if _ASKED in ("cpu", "pretend") and "pytest" in sys.modules:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Read when Triton is imported: its kernels then run on the CPU, one statement after another.
    os.environ["TRITON_INTERPRET"] = "1"
if PRETEND:
    from tests.helpers import pretend_gpu

    pretend_gpu.install()
