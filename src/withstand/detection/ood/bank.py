"""Several detectors of one model, scored in one forward pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.state import frozen
from withstand.models.taps import head
from withstand.protocols import Target


class Bank:
    """Detectors that share one forward pass of a target for the union of their taps.

    target: a classifier. detectors: components of kind "detector", named by their component names; two of one kind are
    told apart by a number. Taps are "logits", "penultimate" (what the last layer reads, see `penultimate`), or the name of
    a submodule, whose output is read.

    What detectors fit is a flat dict of tensors, named "detector.tensor", ready to be kept as safetensors. Detectors that
    move their input (ODIN) or rerun the tail of the network (ReAct, BATS) have no user here yet.

    Raises: BadInput for a target that does not allow what the taps read.
    """

    def __init__(self, target: Target, detectors: Sequence[Any]) -> None:
        self.target = target
        self.detectors: dict[str, Any] = {}
        for detector in detectors:
            name, number = detector.component_name, 1
            while name in self.detectors:
                number += 1
                name = f"{detector.component_name}-{number}"
            self.detectors[name] = detector
        self.taps = tuple(dict.fromkeys(tap for d in detectors for tap in d.taps))
        if target.module is None and (inner := [t for t in self.taps if t != "logits"]):
            raise bad("detectors", f"taps {', '.join(inner)}", f"logits only: {target.name} shows no features")

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Everything that the taps read, from one forward pass of x [N, ...], in eval mode without gradients."""
        module = self.target.module
        if module is None:
            return {"logits": self.target(x)}
        read: dict[str, Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(frozen(module))
            for tap in self.taps:
                if tap == "penultimate":
                    stack.enter_context(_reading(head(module, x[:1]), read, tap))
                elif tap != "logits":
                    stack.callback(_keep_output(_submodule(self.target, tap), read, tap).remove)
            logits = self.target(x)
        return {"logits": logits, **read} if "logits" in self.taps else read

    def fit(self, batches: Iterable[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """What the detectors keep of trusted inputs: one pass over all of them, whose features are held in memory."""
        parts = [self.features(x) for x in batches]
        features = {tap: torch.cat([p[tap] for p in parts]) for tap in self.taps}
        return {
            f"{name}.{key}": tensor
            for name, detector in self.detectors.items()
            for key, tensor in detector.fit({t: features[t] for t in detector.taps}, labels).items()
        }

    def score(self, x: Tensor, fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The score [N] of every detector, float64, higher = more suspicious; one forward pass."""
        features = self.features(x)
        return {name: d.score(features, _own(name, fitted)) for name, d in self.detectors.items()}


def penultimate(target: Target, x: Tensor) -> Tensor:
    """What the last layer of a classifier reads, [N, D]; one forward pass in eval mode without gradients."""
    module = target.module
    if module is None:
        raise bad("model", target.name, "a torch model: its features are needed")
    read: dict[str, Tensor] = {}
    with torch.no_grad(), frozen(module), _reading(head(module, x[:1]), read, "penultimate"):
        target(x)
    return read["penultimate"]


@contextmanager
def _reading(layer: nn.Module, into: dict[str, Tensor], name: str) -> Iterator[None]:
    """Keep what a layer reads as vectors [N, D]: tokens and pixels are averaged."""

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        h = (args[0] if args else next(iter(kwargs.values()))).detach()
        if isinstance(layer, nn.Conv2d):
            h = h.flatten(2).mean(2)
        into[name] = h if h.dim() == 2 else h.flatten(1, -2).mean(1)

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _keep_output(layer: nn.Module, into: dict[str, Tensor], name: str) -> Any:
    return layer.register_forward_hook(lambda _, __, output: into.__setitem__(name, output.detach()))


def _submodule(target: Target, name: str) -> nn.Module:
    getter = getattr(target, "submodule", None)
    if getter is None:
        raise bad("detectors", f"the tap {name!r}", "logits or penultimate for this kind of model")
    return getter(name)


def _own(name: str, fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): t for key, t in fitted.items() if key.startswith(f"{name}.")}
