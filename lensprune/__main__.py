"""``python -m lensprune``."""

import sys

from lensprune.cli import main

sys.exit(main())
