"""A pretend GPU: tensors that say ``cuda:0``, hold a CPU tensor, and refuse what a GPU would refuse.

`LENSPRUNE_TEST_DEVICE=pretend` installs it for a whole test process, before anything is loaded. To C++, its tensors lie
on torch's spare device type (``PrivateUse1``), for which Python may register what autograd and factories need; to
Python they say ``cuda``. PyTorch's own FakeTensor holds no numbers, on which decoding depends, and can't differentiate
on a build without CUDA; an out-of-tree device under its own name would not enter the branches written for ``cuda``.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.helpers import pretend_graphs, pretend_kernels

__all__ = ["Counts", "PlacementError", "PretendTensor", "counting", "install", "settings"]

aten = torch.ops.aten
CPU = torch.device("cpu")
SPARE = "pretend"
"""Name of torch's spare device type."""
_Generator = torch.Generator


class PlacementError(RuntimeError):
    """What a GPU would have refused."""


@dataclass
class Settings:
    """What the pretend GPUs are: their number, compute capability and free bytes, and whether they have float64."""

    n_devices: int = 1
    capability: tuple[int, int] = (8, 0)
    free: int = 60 * 2**30
    total: int = 80 * 2**30
    float64: bool = True


settings = Settings()


@dataclass
class Counts:
    """Kernels by operator, and waits of the host for the device by cause and line of the package."""

    kernels: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)


_counts: list[Counts] = []


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count what the device is asked to do meanwhile."""
    counts = Counts()
    _counts.append(counts)
    try:
        yield counts
    finally:
        _counts.remove(counts)


def _line() -> str:
    frames = [f for f in traceback.extract_stack() if "/lensprune/" in f.filename and "site-packages" not in f.filename]
    package = [f for f in frames if "/tests/" not in f.filename]
    if not package:
        return "elsewhere"
    return f"{package[-1].filename.rpartition('/lensprune/')[2]}:{package[-1].lineno}"


def _kernel(name: str) -> None:
    for counts in () if pretend_graphs.at_work() else _counts:
        counts.kernels[name] += 1


def _wait(cause: str) -> None:
    pretend_graphs.waited(cause)
    for counts in _counts:
        counts.syncs[f"{cause} at {_line()}"] += 1


class PretendTensor(torch.Tensor):
    """A wrapper of `inner`, a CPU tensor; views of one wrap views of the other."""

    inner: torch.Tensor
    place: int

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: int = 0, requires_grad: bool = False) -> PretendTensor:
        if isinstance(inner, PretendTensor):
            inner, place = inner.inner, inner.place
        # A view of an ordinary tensor is an ordinary one in inference mode, too.
        as_inner = contextlib.nullcontext()
        if torch.is_inference_mode_enabled() != inner.is_inference():
            as_inner = torch.inference_mode(inner.is_inference())  # type: ignore[assignment]
        with as_inner:
            made: Any = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device(SPARE, place),
            )
        made.inner = inner.detach() if inner.requires_grad else inner
        made.place = place
        return made.requires_grad_(requires_grad)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.place)

    is_cuda = True  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]

    def get_device(self) -> int:
        return self.place

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, PretendTensor) or value.place != self.place:
            raise PlacementError(f"data on {value.device} for a tensor on {self.device}")
        if (value.shape, value.dtype, value.stride()) != (self.shape, self.dtype, self.stride()):
            raise NotImplementedError("data of another shape, type or layout")
        self.inner = value.inner

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        if id(self) not in memo:
            made = PretendTensor(self.inner.clone(), self.place).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                made._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = made
        return memo[id(self)]

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        # With it, a module that moves keeps its parameters' identity, as on a GPU, so that tied ones stay tied.
        return ["inner"], self.place

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], place: int, size: Any, stride: Any) -> PretendTensor:
        return PretendTensor(inner["inner"], place)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PlacementError("a tensor on the device is pickled")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendTensor({self.inner!r}, {str(self.device)!r})"


def _operators(names: str) -> frozenset[Any]:
    """By their names, ``name.overload``; without an overload, the default."""
    pairs = [name.partition(".") for name in names.split()]
    return frozenset(getattr(getattr(aten, name), overload or "default") for name, _, overload in pairs)


_INDEXING = _operators("index.Tensor _unsafe_index.Tensor index_put index_put_ _index_put_impl_ _unsafe_index_put")
_COPYING = _operators("copy_ _to_copy copy")
_WAITING = _operators(
    "_local_scalar_dense nonzero masked_select _unique2 unique_dim unique_consecutive equal is_nonzero bincount "
    "repeat_interleave.Tensor"
)
_FLOAT_PRODUCTS = _operators("mm bmm addmm baddbmm addbmm addmv mv dot")
_FOR_CPU = _operators("_scaled_dot_product_flash_attention_for_cpu")
_NO_KERNEL = _operators(
    "view view.dtype _unsafe_view _reshape_alias as_strided slice.Tensor select.int transpose.int t permute expand "
    "unsqueeze squeeze squeeze.dim squeeze.dims detach alias split.Tensor split_with_sizes unbind.int unfold diagonal "
    "lift_fresh empty.memory_format empty_like empty_strided new_empty new_empty_strided"
)
_ALSO_ZERO_DIM = _operators("where.self masked_fill.Tensor masked_fill_.Tensor fill_.Tensor lerp.Tensor")
"""Operators that take a CPU tensor of no dimensions, besides the pointwise ones."""

EMULATED: dict[Any, Callable[..., Any]] = {}


def computed(work: Callable[[], Any]) -> Any:
    """What a kernel gives, which graphs compute anew."""
    return pretend_graphs.computed(work, lambda made: unwrapped(list(_flat([made]))))


def refuse(what: Any, why: str) -> None:
    """Raise `PlacementError`."""
    raise PlacementError(f"{what}: {why}")


def _flat(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from _flat(value)


def unwrapped(value: Any) -> Any:
    """Tensors on the device as what they hold."""
    if isinstance(value, PretendTensor):
        return value.inner
    if type(value) in (list, tuple):
        return type(value)(map(unwrapped, value))
    return value


def _wrapped(value: Any, place: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value if isinstance(value, PretendTensor) else PretendTensor(value, place)
    if type(value) in (list, tuple):
        return type(value)(_wrapped(own, place) for own in value)
    return value


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One operator of which an argument or the result lies on the device."""
    tensors = list(_flat((*args, *kwargs.values())))
    mine = [t for t in tensors if isinstance(t, PretendTensor)]
    others = [t for t in tensors if not isinstance(t, PretendTensor) and t.device.type == "cpu"]
    if (emulated := EMULATED.get(func)) is not None:
        _all_on_one(func, tensors)
        return computed(lambda: emulated(*args, **kwargs))
    # Those that consist of others are taken apart, so that each part is checked.
    if func.namespace in ("aten", "prims") and (made := func.decompose(*args, **kwargs)) is not NotImplemented:
        return made
    device = kwargs.get("device")
    target = None if device is None else torch.device(device)
    place = (target.index or 0) if target is not None else (mine[0].place if mine else 0)
    on_device = bool(mine) if target is None else target.type == SPARE
    _check(func, args, mine, others)
    if _counts or pretend_graphs.may_not_wait():
        _count(func, args, mine, others, on_device, target)
    if device is not None and target is not None and target.type == SPARE:
        kwargs["device"] = CPU
    own = [unwrapped(value) for value in args]
    out = pretend_graphs.recorded(func, own, {name: unwrapped(value) for name, value in kwargs.items()})
    if func is aten._local_scalar_dense.default:
        return out
    if func is aten.copy_.default:
        return args[0]
    if not on_device:
        # What comes from the device is a copy.
        return out.clone() if any(out is value for value in own) else out
    if not settings.float64 and any(tensor.dtype == torch.float64 for tensor in _flat([out])):
        refuse(func, "this device has no float64")
    out = _wrapped(out, place)
    return return_and_correct_aliasing(func, args, kwargs, out) if mine else out


def _check(func: Any, args: Sequence[Any], mine: list[Any], others: list[torch.Tensor]) -> None:
    if func in _COPYING:
        return
    if len({tensor.place for tensor in mine}) > 1:
        refuse(func, "tensors on cuda:0 and cuda:1")
    if func in _FOR_CPU:
        refuse(func, "there is no such kernel for a GPU")
    if func in _FLOAT_PRODUCTS and mine and not (mine[0].is_floating_point() or mine[0].is_complex()):
        refuse(func, f"not implemented on a GPU for {mine[0].dtype}")
    if not mine or not others:
        return
    if func in _INDEXING:
        if not isinstance(args[0], PretendTensor):
            refuse(func, "an index on the device for a tensor on the CPU")
        if any(not isinstance(index, PretendTensor) for index in _flat([args[1]])):
            refuse(func, "an index on the CPU for a tensor on the device, which waits for the device")
    for tensor in others:
        if tensor.ndim:
            refuse(func, f"a CPU tensor of shape {tuple(tensor.shape)} meets one on {mine[0].device}")
    if torch.Tag.pointwise not in func.tags and func not in _ALSO_ZERO_DIM and func not in _INDEXING:
        refuse(func, f"a CPU tensor of no dimensions meets one on {mine[0].device} and is not taken as a number")
    if func._schema.is_mutable and not isinstance(args[0], PretendTensor):
        refuse(func, "a result of the device is written into a CPU tensor")


def _count(
    func: Any, args: Sequence[Any], mine: list[Any], others: list[torch.Tensor], on_device: bool, target: Any
) -> None:
    name = str(func)
    if func not in _NO_KERNEL:
        _kernel(name)
    if func in _WAITING:
        _wait(name)
    elif func in _COPYING:
        if mine and ((target is not None and target.type == "cpu") or not isinstance(args[0], PretendTensor)):
            _wait("copy to the host")
        elif others and on_device:
            _wait("copy to the device")
    elif func in _INDEXING and any(i.dtype in (torch.bool, torch.uint8) for i in _flat([args[1]])):
        _wait("boolean index")


def _all_on_one(func: Any, tensors: Sequence[torch.Tensor]) -> None:
    if len({(type(tensor), getattr(tensor, "place", None)) for tensor in tensors}) > 1:
        refuse(func, "arguments on the device and on the CPU, or on two devices")


class PretendGenerator(_Generator):
    """What ``torch.Generator("cuda")`` gives."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls if torch.device(device).type == "cuda" else _Generator, "cpu")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)


class _Names(TorchFunctionMode):
    """``cuda`` becomes the spare device type before C++ sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _place(kwargs["device"])}
        place, generator = kwargs.get("device"), kwargs.get("generator")
        if isinstance(generator, _Generator):
            # Here, since C++ hands on what a generator holds.
            there = isinstance(place, torch.device) and place.type == SPARE
            there = there or any(isinstance(own, PretendTensor) for own in args)
            if there != isinstance(generator, PretendGenerator):
                refuse(func, f"a generator on {generator.device}")
        if func in _FROM_DATA and isinstance(place, torch.device) and place.type == SPARE:
            # C++ makes it out of sight of Python's tensors.
            grad = bool(kwargs.pop("requires_grad", False))
            return func(*args, **{**kwargs, "device": CPU}).to(place).requires_grad_(grad)
        if func is torch.arange and isinstance(place, torch.device) and place.type == SPARE:
            # Its parts resize an empty tensor, which a wrapper can't follow.
            if _counts:
                _kernel("aten.arange.default")
            return computed(lambda: PretendTensor(func(*args, **{**kwargs, "device": CPU}), place.index or 0))
        if func is torch.Tensor.new_tensor and isinstance(args[0], PretendTensor):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(args[0])
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], PretendTensor):
            args = (args[0], _index(args[1], args[0].place), *args[2:])
        if func is torch.Tensor.to:
            args = (args[0], *map(_place, args[1:]))
        elif func is torch.Tensor.cuda:
            return args[0].to(_place("cuda"))
        return func(*args, **kwargs)


def _index(index: Any, place: int) -> Any:
    """Lists of numbers as tensors on the device, to which they are sent."""
    if isinstance(index, tuple):
        return tuple(_index(own, place) for own in index)
    if isinstance(index, (np.ndarray, range)) or (
        isinstance(index, list) and all(isinstance(own, (int, np.integer)) for own in index)
    ):
        return torch.as_tensor(np.asarray(index, dtype=None if len(index) else np.int64)).to(torch.device(SPARE, place))
    return index


def _place(named: Any) -> Any:
    """The spare device that stands for one called ``cuda``; anything else as it is."""
    if not isinstance(named, (str, torch.device)) or not str(named).startswith("cuda"):
        return named
    index = torch.device(named).index or 0
    if index >= settings.n_devices:
        raise RuntimeError("CUDA error: invalid device ordinal")
    return torch.device(SPARE, index)


def _triton_checked(plain: Callable[..., None]) -> Callable[..., None]:
    """`attend_rows` for tensors on the device, as checked as a launch, computed by `plain` on what they hold."""

    def attend_rows(q: Any, new: Any, z: Any, keys: Any, scaling: float, **options: Any) -> None:
        others = {name: own for name in ("more", "seen", "edges") if (own := options.get(name)) is not None}
        tensors = [q, *new, z]
        tensors += [getattr(own, f.name) for own in (keys, *others.values()) for f in fields(own)]
        tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        _all_on_one("attend_rows", tensors)
        read = [t for own in (keys, *others.values()) for t in (getattr(own, name, None) for name in ("k", "v", "out"))]
        for tensor in (q, *new, z, *(tensor for tensor in read if tensor is not None)):
            if tensor.stride(-1) != 1:
                refuse("attend_rows", f"strides {tensor.stride()} of what the kernel reads along the last dimension")
        _kernel("triton.attend_rows")
        options.update({name: _held(own) for name, own in others.items()})
        plain(unwrapped(q), unwrapped(tuple(new)), unwrapped(z), _held(keys), scaling, **options)

    return attend_rows


def _rotate(*tensors: Any) -> tuple[torch.Tensor, ...]:
    """`rotate` for tensors on the device, computed as models do."""
    _all_on_one("rotate", tensors)
    _kernel("triton.rotate")
    return computed(lambda: _wrapped(apply_rotary_pos_emb(*unwrapped(tensors)), tensors[0].place))


def _rms_norm(x: Any, weight: Any, epsilon: float, *, rounds_first: bool) -> torch.Tensor:
    """`norm_kernel.rms_norm` for tensors on the device, computed by torch."""
    _all_on_one("rms_norm", (x, weight))
    if x.stride(-1) != 1 or x.shape[:-3].numel() != 1:
        refuse("rms_norm", f"shape {tuple(x.shape)} with strides {x.stride()}")
    _kernel("triton.rms_norm")
    own = *unwrapped((x, weight)), epsilon, rounds_first
    return computed(lambda: PretendTensor(pretend_kernels.rms_norm(*own), x.place))


def _held(keys: Any) -> Any:
    return type(keys)(**{f.name: unwrapped(getattr(keys, f.name)) for f in fields(keys)})


def install() -> None:
    """Make this process believe in GPUs, for good."""
    _setup_privateuseone_for_python_backend(SPARE)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    install.library = library  # type: ignore[attr-defined]
    # In the calling thread: workers of the engine would not know the modes.
    torch.autograd.set_multithreading_enabled(False)
    EMULATED.update(
        pretend_kernels.emulated(unwrapped, lambda own, like: PretendTensor(own, like.place), _kernel, refuse)
    )
    _patch_cuda()
    pretend_graphs.install(_kernel)
    torch.Generator = PretendGenerator  # type: ignore[misc]
    from lensprune.engine import norm_kernel, rotary_kernel
    from lensprune.engine.decoding import row_kernel

    row_kernel.attend_rows = _triton_checked(pretend_kernels.attend_rows)
    rotary_kernel.rotate = _rotate
    norm_kernel.rms_norm = _rms_norm
    _Names().__enter__()


def _given(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _patch_cuda() -> None:
    class Properties:
        name, total_memory, multi_processor_count = "Pretend", settings.total, 108
        major, minor = settings.capability

    values: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "current_device": 0,
        "get_device_name": Properties.name,
        "get_device_properties": Properties,
        "memory_reserved": 0,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "get_rng_state_all": [],
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }
    nothing = "_lazy_init set_device reset_peak_memory_stats empty_cache synchronize manual_seed manual_seed_all"
    for name in [*nothing.split(), "set_rng_state", "set_rng_state_all", *values]:
        setattr(torch.cuda, name, partial(_given, values.get(name)))
    torch.cuda.device_count = lambda: settings.n_devices
    torch.cuda.get_device_capability = lambda device=None: settings.capability
    torch.cuda.mem_get_info = lambda device=None: (settings.free, settings.total)  # type: ignore[assignment]
