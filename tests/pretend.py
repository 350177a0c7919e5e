"""A GPU to be pretended: the CPU does the work, and what CUDA refuses for tensors on two devices is refused here too."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # it looks at what is replaced here when it is imported, which optimisers do
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")
_MARK = "pretended"
_TENSOR: Any = Tensor  # whose attributes are descriptors, which its types do not say
_FREE = {"copy_", "type_as", "detach", "requires_grad_", "__get__", "__set__", "__deepcopy__",
         "_has_compatible_shallow_copy_type"}  # fmt: skip
"""What may see both devices."""
_STRICT = {"cat", "stack", "gather", "scatter", "scatter_add", "index_select", "conv2d", "linear", "matmul", "bmm"}
"""Where even a single number has to lie on the device of the others."""
_MADE = {f"{kind}_like" for kind in ("rand", "randn", "randint", "zeros", "ones", "full", "empty")}
_NEW = {f"new_{kind}" for kind in ("zeros", "ones", "full", "empty", "tensor")}


class OtherDevice(RuntimeError):
    """Tensors on two devices, or a generator on another."""


@contextmanager
def pretended() -> Iterator[None]:
    """In here `.to("cuda")` and `device="cuda"` make tensors that say so, and that mix with others as CUDA lets them."""
    generator, subclass, to = torch.Generator, Tensor._make_subclass, nn.Module.to

    def own(cls: Any, data: Tensor, *more: Any, **named: Any) -> Tensor:  # parameters
        return _put(subclass(cls, data, *more, **named), _there(data))

    def like(module: nn.Module, *more: Any, **named: Any) -> nn.Module:
        if more and isinstance(more[0], Tensor):
            more = (more[0].device, more[0].dtype, *more[1:])
        return to(module, *more, **named)

    class Generator(generator):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            made: Any = generator.__new__(cls)
            made.there = torch.device(device).type == "cuda"
            return made

        def __init__(self, device: Any = "cpu") -> None:
            pass

    with ExitStack() as stack:
        for place, name, value in (
            (torch, "Generator", Generator),
            (Tensor, "_make_subclass", staticmethod(own)),
            (nn.Module, "to", like),
            (torch.cuda, "default_generators", (generator(),)),
            (torch.cuda, "get_rng_state", lambda device=0: torch.empty(0)),
            (torch.cuda, "set_rng_state", lambda state, device=0: None),
        ):
            stack.enter_context(patch.object(place, name, value))
        stack.enter_context(_Pretence())
        yield


class _Pretence(TorchFunctionMode):
    """Looks at every call of torch: which of the tensors that go in are on the GPU, and where what comes out is."""

    backward = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first: Any = args[0] if args else None
        if name == "__get__" and func == _TENSOR.device.__get__:
            return GPU if _there(first) else CPU
        if name == "__get__" and func == _TENSOR.is_cuda.__get__:
            return _there(first)
        if name == "__set__":
            done = func(*args)
            if func == _TENSOR.data.__set__:
                _put(first, _there(args[1]))
            return done
        if name in ("cpu", "to"):
            return self._moved(func, first, args[1:] if name == "to" else (CPU,), kwargs)
        if name in ("numpy", "__array__") and _there(first) and not self.backward:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        tensors = _tensors(args, []) + _tensors(kwargs, [])
        there = any(map(_there, tensors))
        if "device" in kwargs:
            there = kwargs["device"] is not None and torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = CPU
        elif name in ("tensor", "as_tensor", "asarray"):
            there = name != "tensor" and _there(first)
        if (draws := kwargs.get("generator")) is not None and getattr(draws, "there", False) != there:
            raise OtherDevice(f"{name}: a generator of another device")
        if "device" not in kwargs and name not in _MADE | _NEW and not self.backward:
            self._check(name, args, tensors)
        held, self.backward = self.backward, self.backward or name in ("grad", "backward")
        try:
            done = func(*args, **kwargs)
        finally:
            self.backward = held
        if "device" in kwargs or name in ("tensor", "as_tensor", "asarray"):
            return _put(done.clone() if done is first and _there(first) != there else done, there)
        if there:
            for tensor in _tensors(done, []):
                _put(tensor, there)
        return done

    def _moved(self, func: Any, tensor: Tensor, more: Any, kwargs: dict[str, Any]) -> Tensor:
        there, rest = _there(tensor), []
        for value in [kwargs.pop("device", None), *more]:
            if isinstance(value, (str, int, torch.device)) and not isinstance(value, bool):
                there = torch.device(value).type == "cuda"
            elif isinstance(value, Tensor):
                there = _there(value)
                rest.append(value.dtype)
            elif isinstance(value, torch.dtype):
                rest.append(value)
        done = Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        if there != _there(tensor):
            done = done.clone() if done is tensor else done
        return done if done is tensor else _put(done, there)

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        if name in ("__getitem__", "__setitem__"):  # the index may lie in main memory, the other way round it may not
            of, index = args[0], _tensors(args[1], [])
            if not _there(of) and any(_there(i) and i.dim() for i in index):
                raise OtherDevice("a tensor in main memory, indexed by one on the GPU")
            value = args[2] if len(args) > 2 else None
            if index and isinstance(value, Tensor) and value.dim() and _there(value) != _there(of):
                raise OtherDevice("values of another device")
            return
        if name in _FREE or name.startswith("_foreach") or not any(map(_there, tensors)):
            return
        if any(not _there(t) and (t.dim() or name in _STRICT) for t in tensors):
            raise OtherDevice(f"{name}: {[(list(t.shape), 'cuda' if _there(t) else 'cpu') for t in tensors]}")


def _there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.__dict__.get(_MARK, False)


def _put(tensor: Tensor, there: bool) -> Tensor:
    setattr(tensor, _MARK, there)
    return tensor


def _tensors(value: Any, found: list[Tensor]) -> list[Tensor]:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _tensors(part, found)
    elif isinstance(value, dict):
        _tensors(list(value.values()), found)
    return found
