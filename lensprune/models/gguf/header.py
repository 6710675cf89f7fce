"""The header of a GGUF file, read with every size checked against the file before anything is allocated.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's reader trusts the counts in the
file, so a damaged one can keep it busy for hours; its tables of quantisation sizes are used here.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from lensprune.errors import UserError

__all__ = ["GgufFile", "GgufTensor", "read_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table; `shape` is torch's order, `start` and `n_bytes` are positions in the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    n_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensor table of a GGUF file whose every tensor lies inside the file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """Metadata value ``{architecture}.{key}``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        """Metadata value ``{architecture}.{key}``; `UserError` if the file lacks it."""
        value = self.get(key)
        if value is None:
            raise UserError(f"GGUF file {self.path.name} lacks the metadata key {self.architecture}.{key}")
        return value


def read_gguf(path: Path) -> GgufFile:
    """Read metadata and tensor table.

    Raises:
        UserError: not a GGUF file, cut short, or damaged; the message says where.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"GGUF file {path.name} cannot be read: {error}") from error


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = 0

    def read(self) -> GgufFile:
        if self.data[:4] != _MAGIC:
            raise UserError(f"{self.path.name} is not a GGUF file: it does not start with the bytes GGUF")
        self.at = 4
        version = self._number("I")
        if version not in _VERSIONS:
            raise UserError(
                f"GGUF file {self.path.name} has version {version}: only versions 2 and 3 (little-endian) are supported"
            )
        n_tensors, n_values = self._number("Q"), self._number("Q")
        # A table entry takes at least 24 bytes, a metadata entry at least 13.
        self._check(n_tensors * 24 + n_values * 13, f"{n_tensors} tensors and {n_values} metadata values")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._string()
            metadata[key] = self._value(self._number("I"))
        if not isinstance(metadata.get("general.architecture"), str):
            raise UserError(f"GGUF file {self.path.name} does not name its architecture (general.architecture)")
        table = [self._table_entry() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise self._damaged(f"alignment is {alignment}")
        base = -(-self.at // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in table:
            tensors[name] = self._tensor(name, shape, kind, base + offset)
        if len(tensors) != len(table):
            raise self._damaged("two tensors have the same name")
        return GgufFile(self.path, metadata, tensors)

    def _tensor(self, name: str, shape: tuple[int, ...], kind_number: int, start: int) -> GgufTensor:
        try:
            kind = GGMLQuantizationType(kind_number)
        except ValueError as error:
            raise self._damaged(f"tensor {name!r} has the unknown type {kind_number}") from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise self._damaged(f"tensor {name!r} has shape {list(shape)}, which does not fit blocks of {block}")
        n_bytes = math.prod(shape) // block * block_bytes
        if start + n_bytes > self.size:
            raise UserError(
                f"GGUF file {self.path.name} is cut short: tensor {name!r} ends at byte {start + n_bytes}, the file at "
                f"{self.size}"
            )
        return GgufTensor(name, shape, kind, start, n_bytes)

    def _table_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        n_dims = self._number("I")
        if n_dims > _MAX_DIMS:
            raise self._damaged(f"tensor {name!r} has {n_dims} dimensions")
        dims = [self._number("Q") for _ in range(n_dims)]
        kind, offset = self._number("I"), self._number("Q")
        return name, tuple(reversed(dims)), kind, offset

    def _value(self, kind_number: int) -> Any:
        try:
            kind = GGUFValueType(kind_number)
        except ValueError as error:
            raise self._damaged(f"unknown metadata type {kind_number}") from error
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is GGUFValueType.ARRAY:
            return self._array()
        return self._number(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind_number, count = self._number("I"), self._number("Q")
        if kind_number == GGUFValueType.STRING:
            self._check(count * 8, f"an array of {count} strings")
            return [self._string() for _ in range(count)]
        if kind_number not in list(_SCALARS):
            raise self._damaged(f"an array of metadata type {kind_number}")
        code = _SCALARS[GGUFValueType(kind_number)]
        n_bytes = count * struct.calcsize(f"<{code}")
        self._check(n_bytes, f"an array of {count} numbers")
        values = struct.unpack_from(f"<{count}{code}", self.data, self.at)
        self.at += n_bytes
        return list(values)

    def _string(self) -> str:
        length = self._number("Q")
        self._check(length, f"a string of {length} bytes")
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged("a string is not UTF-8") from error

    def _number(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        self._check(size, "a number")
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += size
        return value

    def _check(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.size - self.at:
            raise self._damaged(f"{what} cannot fit")

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"GGUF file {self.path.name} is damaged or cut short: {what} (near byte {self.at} of {self.size})"
        )
