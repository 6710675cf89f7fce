"""Run variants on tasks, store the outcomes, and continue where it stopped.

``lensprune.sweep`` is this package and can be called: ``lensprune.sweep(model, tasks=..., ...)`` is
`lensprune.sweep.run.sweep`, whose arguments and errors are described there.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensprune.sweep.result import Run


class _Sweep(ModuleType):
    # The import system binds a package's submodules to its attributes, so ``lensprune.sweep`` can't be a function
    # beside a room of that name: whichever was imported last would win.
    def __call__(self, *args: Any, **kwargs: Any) -> Run:
        """Measure accuracy with parts of a model removed; see `lensprune.sweep.run.sweep`."""
        from lensprune.sweep.run import sweep

        return sweep(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        from lensprune.sweep.run import sweep

        return inspect.signature(sweep)


sys.modules[__name__].__class__ = _Sweep
