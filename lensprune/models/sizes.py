"""Check that a configuration can fit the stored weights, before building a model of its size."""

from __future__ import annotations

from collections.abc import Mapping

from lensprune.errors import UserError

__all__ = ["check_sizes"]

_MIN_BITS = 1
"""Minimum number of bits of a stored weight, whatever the quantisation."""


def check_sizes(sizes: Mapping[str, object], n_tensors: int, n_bytes: int, name: str) -> None:
    """Refuse a configuration that is larger than its weight files, which could exhaust time or memory.

    Args:
        sizes: ``num_hidden_layers``, and the names of matrix sides: ``hidden_size``, ``vocab_size``,
            ``intermediate_size``; what is absent is not checked.
        n_tensors, n_bytes: contents of the weight files.
        name: name of the model, for the message.

    Raises:
        UserError: a size is not a positive whole number, there are more layers than tensors, or a matrix is larger than
            the files.
    """
    whole: dict[str, int] = {}
    for key, value in sizes.items():
        # Some architectures state one number per layer.
        if value is None or isinstance(value, (list, tuple)):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"model {name!r} states {key} {value!r}: expected a whole number above 0")
        whole[key] = value
    layers, width = whole.pop("num_hidden_layers", 1), whole.pop("hidden_size", 1)
    if layers > n_tensors:
        raise UserError(f"model {name!r} states {layers} layers, and its files hold {n_tensors} tensors")
    for key, side in {"hidden_size": 1, **whole}.items():
        if side * width * _MIN_BITS > 8 * n_bytes:
            raise UserError(
                f"model {name!r} states {key} {whole.get(key, width)}, more than its {n_bytes} bytes can hold"
            )
