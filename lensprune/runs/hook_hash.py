"""Hash Python hooks, to check that a run folder is resumed with the same ones."""

from __future__ import annotations

import hashlib
import secrets
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from lensprune.models.base import HookFunction

__all__ = ["hook_hash"]

_THIS_PROCESS = secrets.token_hex(16)
_EMPTY = CellType()
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(Ellipsis), torch.dtype, torch.device)


def hook_hash(function: HookFunction) -> str:
    """Hash of what a hook computes: code, constants, defaults, arguments bound by `functools.partial`, enclosed values,
    the globals and functions that it names, and the attributes of objects among these.

    Tensors and arrays count by their values, modules and classes by their names, a `torch.nn.Module` by the shapes and
    sums of its tensors, and globals only of functions of the hook's own package. An opaque object
    (a generator, a file) counts as a different one in every process: a folder can then be resumed only by the process
    that started it.
    """
    digest = hashlib.sha256()
    _Feeder(digest).feed(function)
    return digest.hexdigest()


class _Feeder:
    """Adds values to a digest; each object once, since objects may hold each other."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self._package: str | None = None
        # The objects too: a later one could reuse the id of one that is gone.
        self._seen: dict[int, tuple[int, object]] = {}

    def feed(self, value: object) -> None:
        if isinstance(value, _PLAIN):
            self._add(f"{type(value).__name__}{value!r}")
            return
        if id(value) in self._seen:
            self._add(f"again{self._seen[id(value)][0]}")
            return
        self._seen[id(value)] = len(self._seen), value
        self._add(f"{type(value).__module__}.{type(value).__qualname__}")
        match value:
            case torch.nn.Module():
                self._module(value)
            case torch.Tensor():
                self._tensor(value)
            case np.ndarray() | np.generic():
                array = np.ascontiguousarray(value)
                self._add(f"{array.shape}{array.dtype}")
                self._all(array.tolist()) if array.dtype.hasobject else self._digest.update(array.tobytes())
            case CodeType():
                self._code(value)
            case FunctionType():
                self._function(value)
            case MethodType():
                self._all([value.__func__, value.__self__])
            case partial():
                self._all([value.func, value.args, value.keywords])
            case list() | tuple():
                self._all(value)
            case dict():
                self._all([(key, value[key]) for key in sorted(value, key=_order)])
            case set() | frozenset():
                self._all(sorted(value, key=_order))
            case ModuleType():
                self._add(value.__name__)
            case type() | BuiltinFunctionType():
                self._add(f"{value.__module__}.{value.__qualname__}")
            case _:
                self._object(value)

    def _add(self, text: str) -> None:
        self._digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))

    def _all(self, values: Any) -> None:
        self._add(str(len(values)))
        for value in values:
            self.feed(value)

    def _tensor(self, value: torch.Tensor) -> None:
        self._add(f"{tuple(value.shape)}{value.dtype}")
        self._digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def _module(self, value: torch.nn.Module) -> None:
        for name, tensor in value.state_dict().items():
            self._add(f"{name}{tuple(tensor.shape)}{tensor.dtype}{float(tensor.double().sum())!r}")

    def _code(self, value: CodeType) -> None:
        self._digest.update(value.co_code)
        self._all([value.co_names, value.co_consts])

    def _function(self, value: FunctionType) -> None:
        package = (value.__module__ or "").partition(".")[0]
        if self._package is None:
            self._package = package
        self._all([value.__code__, value.__defaults__, value.__kwdefaults__])
        for cell in value.__closure__ or ():
            # A cell is empty while the function that fills it still runs.
            self._all([] if cell == _EMPTY else [cell.cell_contents])
        if package not in (self._package, "__main__"):
            return
        for name in sorted(_names(value.__code__)):
            if name in value.__globals__:
                self._add(name)
                self.feed(value.__globals__[name])

    def _object(self, value: object) -> None:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        if not hasattr(value, "__dict__") and not slots:
            self._add(f"{_THIS_PROCESS}{id(value)}")
            return
        held = {**getattr(value, "__dict__", {}), **{name: getattr(value, name, None) for name in slots}}
        kinds = [kind for kind in type(value).__mro__ if "__call__" in vars(kind)]
        call = vars(kinds[0])["__call__"] if kinds else None
        self._all([held, call if isinstance(call, FunctionType) else None])


def _order(value: object) -> str:
    """What values of a set, or keys, are sorted by: the same in every process for plain ones."""
    if isinstance(value, frozenset):
        return f"frozenset{sorted(map(_order, value))}"
    if isinstance(value, tuple):
        return f"tuple{[_order(part) for part in value]}"
    known = repr(value) if isinstance(value, _PLAIN) else getattr(value, "__qualname__", "")
    return f"{type(value).__qualname__}{known}"


def _names(code: CodeType) -> set[str]:
    """Names that a function's code, and that of the functions within it, looks up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
