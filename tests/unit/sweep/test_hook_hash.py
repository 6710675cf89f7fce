"""A hook's hash changes with whatever changes its numbers, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lensprune.runs.hook_hash import hook_hash

FACTOR = 1.0


def scale(z: torch.Tensor, hook: Any, factor: Any = 1.0, *, shift: float = 0.0) -> torch.Tensor:
    return z * factor + shift


def by_closure(value: Any) -> Callable[..., Any]:
    return lambda z, hook: z * value


def by_default(value: Any) -> Callable[..., Any]:
    def hooked(z: Any, hook: Any, value: Any = value) -> Any:
        return z * value

    return hooked


def by_keyword_default(value: Any) -> Callable[..., Any]:
    def hooked(z: Any, hook: Any, *, value: Any = value) -> Any:
        return z * value

    return hooked


def by_enclosed_function(value: Any) -> Callable[..., Any]:
    inner = by_closure(value)
    return lambda z, hook: inner(z, hook) + 1


class Scale:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, z: Any, hook: Any) -> Any:
        return z * self.value

    def method(self, z: Any, hook: Any) -> Any:
        return z + self.value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, z: Any, hook: Any) -> Any:
        return z * self.value


WAYS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "partial": lambda value: partial(scale, factor=value),
    "closure": by_closure,
    "default": by_default,
    "keyword default": by_keyword_default,
    "function in a closure": by_enclosed_function,
    "callable object": Scale,
    "object with slots": Slotted,
    "bound method": lambda value: Scale(value).method,
    "partial of a bound method": lambda value: partial(Scale(value).method, hook=None),
}
VALUES = {
    "number": (1.0, 0.0),
    "list": ([1, 2], [2, 1]),
    "dict": ({"a": 1}, {"a": 2}),
    "nested": ({"a": [{1}]}, {"a": [{2}]}),
    "set": ({1, 2}, {1, 3}),
    "tensor": (torch.ones(3), torch.zeros(3)),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.ones(2)),
    "array": (np.ones(3), np.ones(3, dtype=np.float32)),
    "module": (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
    "dtype": (torch.float32, torch.float16),
    "function": (abs, round),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("way", WAYS)
def test_another_value_is_another_hook(way: str, value: str) -> None:
    one, other = VALUES[value]
    assert hook_hash(WAYS[way](one)) == hook_hash(WAYS[way](one))
    assert hook_hash(WAYS[way](one)) != hook_hash(WAYS[way](other))


def test_equal_values_are_the_same_hook_whatever_their_order_in_memory() -> None:
    assert hook_hash(by_closure({"a": 1, "b": 2})) == hook_hash(by_closure({"b": 2, "a": 1}))
    assert hook_hash(by_closure({1, 2, 3})) == hook_hash(by_closure({3, 2, 1}))
    assert hook_hash(by_closure(torch.ones(2))) == hook_hash(by_closure(torch.ones(2)))


def test_sets_among_the_constants_count() -> None:
    one = eval("lambda z, hook: z if hook.layer() in {0, 1} else None")
    other = eval("lambda z, hook: z if hook.layer() in {2, 3} else None")
    assert hook_hash(one) != hook_hash(other)


def test_a_global_that_the_hook_reads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def hooked(z: Any, hook: Any) -> Any:
        return z * FACTOR

    before = hook_hash(hooked)
    assert hook_hash(hooked) == before
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2.0)
    assert hook_hash(hooked) != before


def test_objects_may_hold_each_other() -> None:
    def two() -> tuple[Scale, Scale]:
        a, b = Scale(1.0), Scale(2.0)
        a.other, b.other = b, a  # type: ignore[attr-defined]
        return a, b

    (a, b), (again, _) = two(), two()
    assert hook_hash(a) == hook_hash(again)
    assert hook_hash(a) != hook_hash(b)


def test_what_cannot_be_looked_into_is_another_one() -> None:
    assert hook_hash(by_closure(iter([1]))) != hook_hash(by_closure(iter([1])))


SCRIPT = """
import torch
from functools import partial
from einops import rearrange
from lensprune.runs.hook_hash import hook_hash
TABLE = {"b": {3, 1, 2}, "a": torch.arange(4)}
def hook(z, hook, factor):
    return rearrange(torch.relu(z) * factor + TABLE["a"].sum(), "... d -> ... d")
print(hook_hash(partial(hook, factor=0.5)))
"""


@pytest.mark.slow
def test_another_process_finds_the_same_hash() -> None:
    found = {
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1
