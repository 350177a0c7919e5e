"""Reverse adversarial perturbation: climb from where the attack does worst nearby."""

from typing import Any

from torch import Tensor

from withstand.attacks.transfer.parts import Look, around, per_value
from withstand.errors import bad
from withstand.protocols import Oracle
from withstand.random import Rows
from withstand.registry import component


@component("view", "worst_neighbour", systems=("transfer_baselines",))
class WorstNeighbour:
    """Reverse adversarial perturbation (RAP): the gradient at x + n, n what lowers the objective most within a radius.

    n starts uniform in the radius and takes `steps` signed steps down, each projected back. From the search's step `after`
    on (the late start); before it the gradient is that at x. radius, step: in multiples of eps.

    Reference: Qin, Fan, Liu, Shen, Zhang, Wang, Wu, "Boosting the Transferability of Adversarial Attacks with Reverse
    Adversarial Perturbation", 2022, arXiv 2210.05968.
    """

    radius: float = 1.0
    steps: int = 8
    step: float = 1 / 8
    after: int = 0

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return 1 + self.steps

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise bad("radius", self.radius, "a multiple of eps >= 0")
        if self.steps < 1:
            raise bad("steps", self.steps, "a whole number >= 1")
        if not self.step > 0:
            raise bad("step", self.step, "a multiple of eps > 0")
        if self.after < 0:
            raise bad("after", self.after, "a number of steps >= 0")

    def wrap(self, oracle: Oracle, search: Any) -> Oracle:
        """The view of a search, whose steps it counts and whose radius it takes."""

        def worst(x: Tensor, rows: Rows, step: int) -> Look:
            first = step * self.looks
            if search.steps < self.after:
                return oracle(x, rows, first)
            unit = per_value("worst_neighbour", search)
            reach = (self.radius * unit).expand_as(x)
            point = around(rows, x, reach, "worst neighbour", step)
            for i in range(self.steps):
                gradient, _ = oracle(point, rows, first + 1 + i)
                point = x + (point - self.step * unit * gradient.sign() - x).clamp(-reach, reach)
            return oracle(point, rows, first)

        return worst
