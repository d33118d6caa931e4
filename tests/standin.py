"""A device that is none, for machines without a GPU: "standin".

Its tensors are computed on the CPU, but PyTorch's dispatcher sees another device: they do not mix
with tensors of the CPU, numpy does not take them, and a generator draws on its own device only. So
a constant that stays behind on the CPU fails here as it fails on a GPU. `GAN_EBM_DEVICE=standin`
with pytest runs everything on it, the notebooks' kernels included (see conftest.py).

It needs PyTorch's hook for devices written in Python, which 2.4 lacks.
"""

from contextlib import contextmanager
from functools import cache, partial

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "standin"
IS_AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
aten = torch.ops.aten
# These read one device and write the other. A GPU's tensor also takes indices that lie on the CPU.
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}

_has_float64 = [True]


class Elsewhere(torch.Tensor):
    """A tensor on the stand-in; `raw` holds its numbers, on the CPU."""

    @staticmethod
    def __new__(cls, raw):
        if raw.dtype == torch.float64 and not _has_float64[0]:
            raise TypeError(f"{NAME} has no float64, as Apple's MPS has none; use float32")
        return torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, raw):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return _run(op, *args, **(kwargs or {}))

    def numpy(self, *, force=False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy; use .cpu()")

    def tolist(self):
        return self.raw.tolist()

    def __format__(self, how):
        return format(self.detach().raw, how)

    def __repr__(self):
        return f"{self.raw!r} on {self.device}"

    def __reduce_ex__(self, protocol):  # what is saved is loaded on the CPU, see `_load`
        return self.raw.__reduce_ex__(protocol)


class Generator(torch.Generator):
    """`torch.Generator` that may stand on the stand-in."""

    def __new__(cls, device="cpu"):
        is_here = torch.device(device).type != NAME
        self = super().__new__(cls, device if is_here else "cpu")
        self.place = super().device.__get__(self) if is_here else torch.device(NAME, 0)
        return self

    @property
    def device(self):
        return self.place


class _Module:
    """What stands in torch.cuda's place for this device."""

    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)  # global draws are those of the CPU
    get_rng_state = staticmethod(lambda *device: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *device: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


def _load(load, *args, map_location=None, **kwargs):
    """torch.load, also onto the stand-in."""
    if map_location is None or torch.device(map_location).type != NAME:
        return load(*args, map_location=map_location, **kwargs)
    loaded = load(*args, map_location="cpu", **kwargs)
    return tree_map_only(torch.Tensor, lambda x: x.to(map_location), loaded)


class _Draws(TorchFunctionMode):
    """Refuse to draw on another device than the generator's, as CUDA's generators do."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        generator = kwargs.get("generator")
        if isinstance(generator, Generator) and isinstance(out, torch.Tensor):
            _check_draw(generator, out.device)
        return out


def _check_draw(generator, device):
    if generator.device.type != device.type:
        raise RuntimeError(
            f"Expected a {device.type!r} device type for generator but found "
            f"{generator.device.type!r}"
        )


def _check_mix(op, args, kwargs):
    """Raise as CUDA does if `op` is given tensors of both devices."""
    schema = op._schema.arguments
    named = list(zip((a.name for a in schema), args, strict=False)) + list(kwargs.items())
    written = {a.name for a in schema if a.alias_info is not None and a.alias_info.is_write}
    for name, value in named:
        if op in INDEXES and name == "indices" and isinstance(args[0], Elsewhere):
            continue
        in_list = isinstance(value, (list, tuple))
        for x in value if in_list else [value]:
            # A number, a tensor of no axes, may lie anywhere, but not be written to.
            is_number = isinstance(x, torch.Tensor) and x.ndim == 0
            if not isinstance(x, torch.Tensor) or isinstance(x, Elsewhere):
                continue
            if not is_number or in_list or name in written:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, {NAME}:0 and cpu ({op}, {name} {tuple(x.shape)})"
                )


def _run(op, *args, **kwargs):
    """Carry out one operator of the dispatcher on the CPU."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    inputs = [x for x in tensors if isinstance(x, Elsewhere)]
    to = kwargs.get("device")
    stays = bool(inputs) if to is None else torch.device(to).type == NAME
    if 0 < len(inputs) < len(tensors) and op not in COPIES:
        _check_mix(op, args, kwargs)
    if isinstance(kwargs.get("generator"), Generator):
        _check_draw(kwargs["generator"], torch.device(NAME if stays else "cpu"))
    if to is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    raw_args, raw_kwargs = tree_map_only(Elsewhere, lambda x: x.raw, (args, kwargs))
    if op is aten._copy_from.default:
        raw_args[1].copy_(raw_args[0])
        return args[1]
    out = op(*raw_args, **raw_kwargs)
    if op is aten.copy_.default:
        return args[0]
    for x in inputs:
        if x.raw.shape != x.shape:  # as after squeeze_
            with torch._C._DisableTorchDispatch():
                x.as_strided_(x.raw.shape, x.raw.stride())
    known = {id(x.raw): x for x in inputs}  # in-place operators return what they were given

    def move(x):
        return known[id(x)] if id(x) in known else Elsewhere(x)

    return tree_map_only(torch.Tensor, move, out) if stays else out


def _factories():
    """The operators that take a device and no tensor."""
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        packet, _, overload = name.removeprefix("aten::").partition(".")
        try:
            op = getattr(getattr(aten, packet), overload or "default")
        except (AttributeError, RuntimeError):
            continue
        arguments = op._schema.arguments
        if any("Tensor" in str(a.type) or "Storage" in str(a.type) for a in arguments):
            continue
        if any(a.name == "device" for a in arguments) and "out" not in overload:
            yield op


@cache
def install():
    """Make `torch.device("standin")`, from now on in this process; before the first gradient.

    Autograd's engine looks for devices once, when it first runs. What is returned is what the
    registrations last as long as.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    # What reaches the device itself: operators that take no tensor, and the end of torch.tensor.
    for op in (*_factories(), aten._copy_from.default):
        library.impl(op, partial(_run, op), "PrivateUse1")
    # Autocasting changes types, not devices, and is left out.
    autocast = torch.library.Library("_", "IMPL")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    torch.Generator, torch.load = Generator, partial(_load, torch.load)
    _Draws().__enter__()
    return library, autocast


@contextmanager
def without_float64():
    """Inside the block a tensor of doubles on the stand-in is refused, as on Apple's MPS."""
    _has_float64[0] = False
    try:
        yield
    finally:
        _has_float64[0] = True
