"""Views that look at other points than the current one: ahead along the momentum, and around it."""

from typing import Any

import torch
from torch import Tensor

from withstand.attacks.shapings import Momentum
from withstand.attacks.transfer.parts import Look, around, mean, per_value
from withstand.errors import bad
from withstand.protocols import Oracle
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import per_row


@component("view", "nesterov", systems=("transfer_baselines",))
class Nesterov:
    """Nesterov look-ahead (NI): the gradient at x + step * decay * m, m the accumulated gradient before this step.

    It reads the memory and the decay of the search's momentum shaping, which it needs.

    Reference: Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", 2020, arXiv
    1908.06281.
    """

    def wrap(self, oracle: Oracle, search: Any) -> Oracle:
        """The view of a search, whose momentum it follows."""
        found = [(i, s) for i, s in enumerate(search.shapings) if isinstance(s, Momentum)]
        if not found or search.parameterisation is not None:
            got = repr(search.shapings) if not found else "a parameterisation"
            raise bad(
                "shapings", got, "one with momentum(), on the inputs themselves", "nesterov looks ahead along it."
            )
        position, momentum = found[-1]

        def ahead(x: Tensor, rows: Rows, step: int) -> Look:
            memory = search.memory.get((position, "x"))
            if memory is None:
                return oracle(x, rows, step)
            size = per_row(search.size, x) if isinstance(search.size, Tensor) else search.size
            return oracle(x + per_value("nesterov", search) * size * momentum.decay * memory, rows, step)

        return ahead


@component("view", "variance", systems=("transfer_baselines",))
class Variance:
    """Variance tuning (VT): g(x) + v, v = mean over neighbours of g - g(x), both at the point of the step before.

    radius: neighbours are uniform within radius * eps (beta of the paper). samples: neighbours. A look costs 1 + samples.
    With `nesterov` inside or outside, neighbours lie around the point looked ahead to.

    Reference: Wang, He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", 2021, arXiv
    2103.15571.
    """

    radius: float = 1.5
    samples: int = 20

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return 1 + self.samples

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise bad("radius", self.radius, "a multiple of eps >= 0")
        if self.samples < 1:
            raise bad("samples", self.samples, "a whole number >= 1")

    def wrap(self, oracle: Oracle, search: Any) -> Oracle:
        """The view of a search, in whose memory the variance waits for the next step."""
        key = ("variance", id(oracle))

        def tuned(x: Tensor, rows: Rows, step: int) -> Look:
            reach, first = self.radius * per_value("variance", search), step * (self.samples + 1)
            gradient, value = oracle(x, rows, first)
            neighbours = (first + i for i in range(1, self.samples + 1))
            about, _ = mean(oracle(around(rows, x, reach, "variance", n), rows, n) for n in neighbours)
            before = search.memory.get(key)
            search.memory[key] = about - gradient
            return gradient if before is None else gradient + before, value

        return tuned


@component("view", "penalised_norm", systems=("transfer_baselines",))
class PenalisedNorm:
    """Penalised gradient norm (PGN): mean over draws of (1 - mix) * g(x') + mix * g(x' - step * g(x') / mean|g(x')|).

    radius: draws x' are uniform within radius * eps. mix: weight of the second gradient (delta of the paper). samples:
    draws; a look costs twice as many. The inner step is as long as the search's own, eps / 10 before the first.

    Reference: Ge et al., "Boosting Adversarial Transferability by Achieving Flat Local Maxima", 2023, arXiv 2306.05225.
    """

    radius: float = 3.0
    mix: float = 0.5
    samples: int = 20

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return 2 * self.samples

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise bad("radius", self.radius, "a multiple of eps >= 0")
        if not 0 <= self.mix <= 1:
            raise bad("mix", self.mix, "a share in [0, 1]")
        if self.samples < 1:
            raise bad("samples", self.samples, "a whole number >= 1")

    def wrap(self, oracle: Oracle, search: Any) -> Oracle:
        """The view of a search, whose radius and step it takes."""

        def flat(x: Tensor, rows: Rows, step: int) -> Look:
            unit = per_value("penalised_norm", search)
            size = per_row(search.size, x) if isinstance(search.size, Tensor) else search.size or 0.1

            def look(i: int) -> Look:
                own = step * self.samples + i
                point = around(rows, x, self.radius * unit, "penalised norm", own)
                near, value = oracle(point, rows, 2 * own)
                length = per_row(near.abs().flatten(1).mean(1).clamp_min(1e-20), near)
                far, _ = oracle(torch.addcmul(point, near, unit * size / length, value=-1), rows, 2 * own + 1)
                return torch.lerp(near, far, self.mix), value

            return mean(look(i) for i in range(self.samples))

        return flat
