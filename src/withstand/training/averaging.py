"""Averages of the weights over the training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.state import evaluating
from withstand.registry import component
from withstand.training.sharding import spread_like


@component("averaging", "ema")
class EMA:
    """Exponential moving average: a <- d * a + (1 - d) * w after every step, with d = min(decay, (1 + t) / (10 + t)).

    The ramp of d lets short trainings forget their start. Buffers (batch statistics) are averaged as the weights are.

    Reference: Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; for adversarial training
    Gowal et al., "Uncovering the Limits of Adversarial Training", 2020, arXiv 2010.03593.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise bad("decay", self.decay, "a number in [0, 1)")

    def share(self, step: int, progress: float) -> float | None:
        """How much of the new weights enters the average after `step` steps; None: nothing yet."""
        return 1 - min(self.decay, (1 + step) / (10 + step))


@component("averaging", "swa")
class SWA:
    """Stochastic weight averaging: the plain mean of the weights after every step of the last part of the training.

    The batch statistics are averaged with the weights instead of being measured anew in a pass of their own.

    Reference: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018,
    arXiv 1803.05407.
    """

    start: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise bad("start", self.start, "a share of the training in [0, 1)")

    def share(self, step: int, progress: float) -> float | None:
        """As for `EMA`; `average` counts how many weights have entered."""
        return -1.0 if progress >= self.start else None


class Average:
    """The running average of everything in a system's state that is a float; the rest is copied."""

    def __init__(self, kind: EMA | SWA, system: nn.Module) -> None:
        self.kind, self.count = kind, 0
        self.state = {name: t.detach().clone() for name, t in system.state_dict().items()}

    @torch.no_grad()
    def update(self, system: nn.Module, step: int, progress: float) -> None:
        """Take in the system's present state."""
        share = self.kind.share(step, progress)
        if share is not None:
            self.count += 1
            share = 1 / self.count if share < 0 else share
        for name, now in system.state_dict().items():
            mean = self.state[name]
            if mean.shape != now.shape:  # a buffer that takes its shape from the first batch
                self.state[name] = now.detach().clone()
            elif share is None or not mean.is_floating_point():
                mean.copy_(now)
            else:
                mean.lerp_(now, share)

    def put(self, state: Mapping[str, Tensor], count: int) -> None:
        """Go on from a state that was saved, every tensor in one piece."""
        self.state = {name: spread_like(t, self.state[name]) for name, t in state.items()}
        self.count = count

    @torch.no_grad()
    def run(self, system: nn.Module, x: Tensor) -> Tensor:
        """What the system makes of x with the averaged state, in eval mode."""
        with evaluating(system):
            return torch.func.functional_call(system, self.state, (x,), tie_weights=False)  # type: ignore[no-any-return]

    @contextmanager
    def worn_by(self, system: nn.Module) -> Iterator[None]:
        """The system has the averaged state within the block, and its own again afterwards."""
        own: dict[str, Tensor] = {name: t.detach().clone() for name, t in system.state_dict().items()}
        system.load_state_dict(self.state)
        try:
            yield
        finally:
            system.load_state_dict(own)
