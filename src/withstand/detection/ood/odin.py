"""ODIN: a step of the input towards the prediction, which familiar inputs follow further than others."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from withstand.detection.ood.logits import MSP
from withstand.errors import bad
from withstand.protocols import Target
from withstand.registry import component


@component("detector", "odin", systems=("ood_human_centric", "bats"))
class ODIN:
    """1 - max softmax(z(x') / T), x' = x - eps sign(grad_x CE(z / T, argmax z)).

    Costs a backward pass of what all detectors share, and a forward pass at x'. temperature: T. eps: in the range of the
    inputs ([0, 1] for images: what the published code does to inputs that are divided by their standard deviation). x' is
    not brought back into the range, as published.

    Reference: Liang, Li, Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
    2018, arXiv 1706.02690.
    """

    temperature: float = 1000.0
    eps: float = 0.0014

    taps = ()
    needs_input = False

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise bad("temperature", self.temperature, "a number > 0")
        if not 0 <= self.eps < float("inf"):
            raise bad("eps", self.eps, "a number >= 0")

    def accept(self, target: Target) -> None:
        """Raises: BadInput for a target without gradients."""
        if "gradients" not in target.access:
            raise bad("model", target.name, "a model with gradients, for odin")

    def climbs(self, logits: Tensor) -> Tensor:
        """The value [N] along whose input gradient `look_along` steps."""
        return F.cross_entropy(logits / self.temperature, logits.argmax(1), reduction="none")

    def look_along(self, target: Target, x: Tensor, slope: Tensor) -> dict[str, Tensor]:
        """The logits at x'; slope: the gradient [N, ...] of `climbs`."""
        return {"moved": target(x - self.eps * slope.sign())}

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        return {}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        return MSP().score({"logits": features["moved"].double() / self.temperature}, {})
