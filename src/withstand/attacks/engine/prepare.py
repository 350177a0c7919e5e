"""A faster stand-in for a convolutional network: batch norm folded into the convolutions, channels last."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PROBES = 4


def prepared(call: Callable[[Tensor], Any], module: nn.Module | None, x: Tensor) -> nn.Module | None:
    """A copy of `module` (in eval mode) that computes what `call` does, in less time; None where that cannot be had.

    A batch norm whose input is the output of a convolution, each being called once, goes into that convolution. The
    copy counts only if it agrees with `call` near a few of the inputs x: whatever the model does elsewhere with what was
    folded shows up there. Logits agree to 1e-5 of the largest, and each input's gradient to 1e-2 of its length: where a
    unit lies within rounding of its kink, as in deep networks some do, the model's own rounding moves it by 1e-3. Models
    with hooks are left alone, since their owners watch every call.
    """
    if module is None or x.dim() != 4 or not any(type(m) is nn.BatchNorm2d for m in module.modules()):
        return None
    if any(getattr(m, h) for m in module.modules() for h in _HOOKS):
        return None
    try:
        twin = copy.deepcopy(module).eval().requires_grad_(False)
        probe = x[:_PROBES]
        probe = torch.lerp(probe, probe.mean(), 0.05)  # off the grid of 8 bits, where a call that rounds shows itself
        _fold(twin, probe)
        twin = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return twin if _agree(call, twin, probe) else None
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
        return None  # not to be copied, or not to be run in this way: the given model does the work


def _fold(twin: nn.Module, probe: Tensor) -> None:
    """Put every batch norm that directly follows a convolution into it."""
    calls: dict[nn.Module, int] = {}
    maker: dict[int, nn.Module] = {}
    outputs: list[Tensor] = []  # kept, so that no id is used again
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def watch(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls[part] = calls.get(part, 0) + 1
        if isinstance(part, nn.Conv2d):
            outputs.append(output)
            maker[id(output)] = part
        elif args and id(args[0]) in maker:
            pairs.append((maker[id(args[0])], part))

    watched = [m for m in twin.modules() if type(m) in (nn.Conv2d, nn.BatchNorm2d)]
    handles = [m.register_forward_hook(watch) for m in watched]
    try:
        with torch.no_grad():
            twin(probe)
    finally:
        for handle in handles:
            handle.remove()
    names = {part: name for name, part in twin.named_modules()}
    for conv, norm in pairs:
        if calls[conv] == calls[norm] == 1 and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            _replace(twin, names[conv], fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var]
            _replace(twin, names[norm], nn.Identity())


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, part.eval().requires_grad_(False))


def _agree(call: Callable[[Tensor], Any], twin: nn.Module, probe: Tensor) -> bool:
    found = []
    for model in (call, twin):
        point = probe.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            logits = model(point)
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                return False
            weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
            (gradient,) = torch.autograd.grad((logits * weights).sum(), point)
        found.append((logits.detach(), gradient.flatten(1)))
    (logits, gradient), (others, turned) = found
    same = bool((logits - others).abs().max() <= 1e-5 * logits.abs().max())
    return same and bool(((gradient - turned).norm(dim=1) <= 1e-2 * gradient.norm(dim=1)).all())
