"""BATS: features are clipped into their typical range before any detector looks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.detection.ood.logits import Energy
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.models.taps import Tap, penultimate, see, vectors, within
from withstand.models.target import TorchTarget
from withstand.protocols import Target
from withstand.registry import coerce, component

Where = Literal["bn", "penultimate", "published"]


@component("detector", "bats", systems=("bats",))
class BATS:
    """Any other detector, on features that are clipped into their typical range: min(max(h, m - lam s), m + lam s).

    where "bn": the output of the last batch norm before the head, in front of its activation, whose mean and deviation per
    channel are its own bias and |weight|, so that no data is needed; "penultimate": what the last layer reads, with the
    mean and deviation of `images` trusted examples (None: of all); for networks without batch norm; "published": what the
    last layer reads, with bias and |weight| of the last batch norm, as in the released code for CIFAR-10. The detector is
    fitted on clipped features. One more pass of the network for all detectors with equal clipping.

    detector: the other one. lam: half the width, in deviations; the smaller, the less noise and the less information; 1e6
    changes nothing. layer: the name of another batch norm, or of another layer whose output is clipped channel by channel
    by estimated statistics.

    Reference: Zhu, Chen, Xie, Li, Zhang, Xue, Tian, Zheng, Chen, "Boosting Out-of-distribution Detection with Typical
    Features", NeurIPS 2022, arXiv 2210.04200.
    """

    detector: Annotated[Any, PlainValidator(coerce("detector"))] = Energy()
    lam: float = 1.0
    where: Where = "bn"
    layer: str | None = None
    images: int | None = None

    taps = ()
    needs_input = False

    def __post_init__(self) -> None:
        if not self.lam >= 0:
            raise bad("lam", self.lam, "a number >= 0")
        if self.images is not None and self.images < 2:
            raise bad("images", self.images, "at least 2, or None for all")
        if self.layer is not None and self.where != "bn":
            raise bad("layer", repr(self.layer), 'none with where="penultimate" or "published"')
        if isinstance(self.detector, BATS):
            raise bad("detector", repr(self.detector), "one without bats of its own: clipping twice changes nothing")

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.detector.component_name}+bats"

    @property
    def clipping(self) -> "Clipping":
        """What is done to the features, whatever looks at them."""
        return Clipping(self.lam, self.where, self.layer, self.images)

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        raise bad("detector", repr(self), "a bank of detectors to fit it", "It changes what the model computes.")

    score = fit  # type: ignore[assignment]


@dataclass(frozen=True)
class Clipping:
    """Where and how features are clipped; see `BATS`."""

    lam: float
    where: Where = "bn"
    layer: str | None = None
    images: int | None = None

    def measured(self, target: Target, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """ "mean" and "deviation" [C] of the typical range, of a target and trusted inputs.

        Raises: BadInput for models without the layer, and features that are no numbers.
        """
        module = _module(target)
        batches = iter(batches)
        first = next(batches)
        tap, norm = self.place(module, first[:1])
        if norm is not None:
            scale, shift = norm.weight, norm.bias
            at = torch.zeros(norm.num_features, device=first.device)
            mean = at if shift is None else shift.detach().clone()
            return {"mean": mean, "deviation": at + 1 if scale is None else scale.detach().abs()}
        parts, left = [], self.images
        with torch.no_grad(), frozen(module):
            for x in (first, *batches):
                parts.append(_channels(see(module, x[:left], tap)[1]).double())
                left = None if left is None else left - len(parts[-1])
                if left is not None and left <= 0:
                    break
        h = torch.cat(parts)
        if not bool(torch.isfinite(h).all()):
            raise bad("features", "NaN or infinite values", "finite values", f"Look at {tap.name or 'the model'}.")
        return {"mean": h.mean(0), "deviation": h.std(0, correction=0)}

    def applied(self, target: Target, measured: Mapping[str, Tensor], x: Tensor) -> TorchTarget:
        """The target with its features clipped; x: an input or more, to find the layer. The model itself stays as it is."""
        tap, _ = self.place(_module(target), x[:1])
        mean, reach = measured["mean"], self.lam * measured["deviation"]
        model = Clipped(_module(target), tap, mean - reach, mean + reach)
        return TorchTarget(model, target.name, target.space)

    def place(self, module: nn.Module, x: Tensor) -> tuple[Tap, _BatchNorm | None]:
        """What is clipped, and the batch norm whose parameters say how far, if they do."""
        if self.layer is not None:
            name = within(module, self.layer)
            part = module.get_submodule(name)
            return Tap(name), part if isinstance(part, _BatchNorm) else None
        if self.where == "penultimate":
            return penultimate(module, x), None
        name, norm = _last_norm(module, x)
        if self.where == "bn":
            return Tap(name), norm
        tap = penultimate(module, x)
        with torch.no_grad(), frozen(module):
            length = vectors(see(module, x, tap)[1]).shape[1]
        if length != norm.num_features:
            got = f"{norm.num_features} channels in {name}, {length} features before the last layer"
            raise bad("where", got, 'as many of the one as of the other for "published"', 'Take "bn" or "penultimate".')
        return tap, norm


class Clipped(nn.Module):
    """A model that computes with clipped values at one place. low, high: [C], the bounds of each channel."""

    low: Tensor
    high: Tensor

    def __init__(self, model: nn.Module, tap: Tap, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.model, self.tap = model, tap
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        part = self.model.get_submodule(self.tap.name)
        if self.tap.side == "output":
            handle = part.register_forward_hook(lambda *seen: self._clipped(seen[2]), prepend=True)
        else:
            clip = lambda _, args: (self._clipped(args[0]), *args[1:])  # noqa: E731
            handle = part.register_forward_pre_hook(clip, prepend=True)  # who looks at this place sees it clipped
        try:
            return self.model(x)
        finally:
            handle.remove()

    def _clipped(self, h: Tensor) -> Tensor:
        axis = 1 if h.dim() != 3 else 2  # maps [N, C, ...] and vectors [N, C]; tokens [N, T, C]
        shape = [-1 if i == axis else 1 for i in range(h.dim())]
        if h.shape[axis] != len(self.low):
            raise bad("statistics", f"{len(self.low)} channels", f"{h.shape[axis]}, as the layer has")
        return h.clamp(self.low.to(h).view(shape), self.high.to(h).view(shape))


def _last_norm(module: nn.Module, x: Tensor) -> tuple[str, _BatchNorm]:
    """The batch norm that runs last in a forward pass."""
    ran: list[str] = []
    norms = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    handles = [p.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, p in norms.items()]
    try:
        with torch.no_grad(), frozen(module):
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        mend = """For others: bats(DETECTOR, where="penultimate"), with statistics of trusted examples."""
        raise bad("bats", "a model without batch norm", "a model with batch norm", mend)
    return ran[-1], norms[ran[-1]]


def _channels(h: Tensor) -> Tensor:
    """Values of each channel [M, C] of maps [N, C, ...], tokens [N, T, C] or vectors [N, C]."""
    return h.flatten(0, 1) if h.dim() == 3 else h.movedim(1, -1).flatten(0, -2)


def _module(target: Target) -> nn.Module:
    if target.module is None:
        raise bad("model", target.name, "a torch model: its features are clipped")
    return target.module
