"""Shapings: what happens to the gradient between the oracle and the step."""

from torch import Tensor

from withstand.errors import bad
from withstand.registry import component
from withstand.threats import per_row


@component("shaping", "momentum")
class Momentum:
    """Accumulated gradients: m <- decay * m + g / mean|g|.

    Reference: Dong et al., "Boosting Adversarial Attacks with Momentum", 2018, arXiv 1710.06081 (there g is divided by its
    L1 norm; the mean differs by a constant, which no normalised step sees).
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.decay < 0:
            raise bad("decay", self.decay, "a number >= 0")

    def __call__(self, gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        size = gradient.abs().flatten(1).mean(1).clamp_min(1e-20)
        size = per_row(size, gradient)
        if memory is None:
            memory = gradient / size
        else:  # in its own memory: new memory costs more than the arithmetic
            memory = (memory if self.decay == 1 else memory.mul_(self.decay)).addcdiv_(gradient, size)
        return memory, memory
