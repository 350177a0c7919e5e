"""What a model gives back, its logits and its gradients, and what is refused of it."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.target import core
from withstand.protocols import Seen

MASKED = (
    "the model's gradient is NaN or infinite where its logits are finite; such entries count as zero. The attack is blind "
    "there, and its failure is no sign of robustness: look for a root, logarithm or norm at zero, or take an attack that "
    "needs no gradient, e.g. square."
)


def see(
    model: Callable[[Tensor], Any], points: Tensor, features: Sequence[str] = (), precision: torch.dtype | None = None
) -> Seen:
    """One forward pass: logits in at least single precision, and the outputs of the submodules named in `features`; of
    those written ">name", what goes into them. Names are those of the module, or of the architecture inside its wrappers."""
    found: dict[str, Tensor] = {}
    if features or precision is not None:
        with ExitStack() as stack:
            for name in features:
                stack.callback(_tap(model, name, found).remove)
            if precision is not None:
                stack.enter_context(torch.autocast(points.device.type, dtype=precision))
            output = as_tensor(model(points), points)
    else:
        output = as_tensor(model(points), points)
    half = isinstance(output, Tensor) and output.dtype in {torch.float16, torch.bfloat16}
    return Seen(points, output.float() if half else output, found)


def as_tensor(output: Any, like: Tensor) -> Any:
    """A model's output as a tensor beside `like`, where it is an array."""
    if isinstance(output, Tensor) or not hasattr(output, "__array__"):
        return output
    return torch.as_tensor(output, device=like.device)


def needs_gradient(value: Tensor) -> None:
    """Refuse a model whose output does not depend on its input as far as autograd can see."""
    if not value.requires_grad:
        advice = "Something in it cuts the gradient (detach, a codec, NumPy): wrap that step in BPDA, or take square."
        raise bad("model", "an output without a gradient", "a differentiable model", advice)


def usable(gradient: Tensor) -> Tensor:
    """The gradient with zeros for what is not finite, said once: one NaN would carry the whole point away."""
    if math.isfinite(gradient.sum()) or bool(torch.isfinite(gradient).all()):
        return gradient
    warnings.warn(MASKED, RuntimeWarning, stacklevel=2)
    return torch.where(torch.isfinite(gradient), gradient, 0.0)


def check_output(logits: Any, points: Tensor) -> None:
    """Refuse what is no row of finite numbers for each input."""
    if not isinstance(logits, Tensor) or logits.dim() < 2 or len(logits) != len(points):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise bad(
            "model",
            f"an output of {shape} for {len(points)} inputs",
            "logits of shape [N, classes]",
            "Wrap the model with withstand.load_model, whose adapters unwrap common outputs.",
        )
    if not bool(torch.isfinite(logits).all()):
        raise bad(
            "model",
            "NaN or infinite logits",
            "finite logits",
            "They would count neither as robust nor as broken; look for overflow in half precision.",
        )


def _tap(model: Any, name: str, into: dict[str, Tensor]) -> Any:
    module = getattr(model, "module", model)
    if not isinstance(module, nn.Module):
        raise bad("model", type(model).__name__, f"a torch module, since the objective reads the submodule {name!r}")
    part = _part(module, name.removeprefix(">"))
    if part is None:
        raise bad("objective", f"reads {name!r}", "the name of a submodule of the model")

    def note(h: Any) -> Any:
        into[name] = h
        return h.clone() if isinstance(h, Tensor) else h  # an in-place activation may write into the copy

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (note(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: note(kwargs[first])}

    if name.startswith(">"):
        return part.register_forward_pre_hook(before, with_kwargs=True)
    return part.register_forward_hook(lambda _module, _args, output: note(output))


def _part(module: nn.Module, name: str) -> nn.Module | None:
    """A submodule by its name in the module, or else in the architecture that the wrappers stand around."""
    for whole in (module, core(module)):
        with suppress(AttributeError):
            return whole.get_submodule(name)
    return None
