"""Projected gradient descent, with any threat, objective, parameterisation, views and shapings."""

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import PlainValidator

from withstand.attacks.engine import Attack, Point, Problem
from withstand.errors import bad
from withstand.objectives import CrossEntropy, ObjectiveField
from withstand.registry import component
from withstand.threats import Linf, ThreatField, per_row


def start_of(value: Any) -> bool | float:
    """A start that `Problem.start` takes. Raises: BadInput for anything else."""
    if isinstance(value, bool) or (isinstance(value, float) and 0 < value < math.inf):
        return value
    allowed = "True, False, or a standard deviation > 0 written as a decimal number"
    raise bad("random_start", repr(value), allowed, "Write 0.001 for Gaussian noise, True for a uniform start.")


@component("attack", "pgd", systems=("classic_attacks",))
class PGD(Attack):
    """Projected gradient descent: steepest steps, each projected back into the threat.

    z <- P(z + a * steepest(grad objective(z))), a = step * eps.

    threat: where to search. steps: gradient steps. step: length of a step as a share of eps; None takes 2.5 / steps.
    random_start: begin at a random point of the set (True) or at the clean one (False); a number begins at Gaussian noise
    of that standard deviation around the clean point, moved into the set and the input's range (published code that does
    so leaves it unclipped for the first pass). restarts: further runs for examples that still stand. objective: what is
    increased. views, shapings: wrap the gradient (e.g. `eot(20)`, `momentum(1.0)`). parameterisation: what moves instead
    of pixels.

    With random_start=False it is the basic iterative method (BIM, Kurakin et al., 2017, arXiv 1607.02533); with one full
    step besides, FGSM.

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, arXiv 1706.06083.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 10
    step: float | None = None
    random_start: Annotated[bool | float, PlainValidator(start_of)] = True
    restarts: int = 1
    objective: ObjectiveField = CrossEntropy()
    views: tuple[Any, ...] = ()
    shapings: tuple[Any, ...] = ()
    parameterisation: Any = None
    clean_starts: float = 0.0

    reach: ClassVar[float] = 2.5
    """How far all steps lead together where step is None, in radii."""

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        if self.steps < 1:
            raise bad("steps", self.steps, "a whole number >= 1")
        if self.restarts < 1:
            raise bad("restarts", self.restarts, "a whole number >= 1")
        if not 0 <= self.clean_starts <= 1:
            raise bad("clean_starts", self.clean_starts, "a share in [0, 1]")
        if self.step is not None and self.step <= 0:
            raise bad("step", self.step, "a share of eps > 0, or None for 2.5 / steps")

    @property
    def prepares(self) -> bool:  # type: ignore[override]
        """Ten steps pay for a faster copy; a last iterate is to be the model's own."""
        return self.keep == "best" and self.steps * self.restarts >= 10

    def search(self, p: Problem) -> Point:
        size = self.step if self.step is not None else self.reach / self.steps
        z: Point = p.x
        if self.random_start and (self.keep == "best" or self.active):
            p.clean  # noqa: B018 (the clean point counts as a candidate)
        for restart in range(self.restarts):
            p.restart()
            if p.finished:
                break
            z = p.start(self.random_start, "pgd", restart)
            if self.clean_starts:
                z = self._some_clean(p, z, restart)
            for _ in range(self.steps):
                gradient = p.gradient(z)
                z, gradient = p.drop_done(z, gradient)
                if p.finished:
                    break
                z = self.move(p, z, gradient, size)
            if not p.finished and (self.keep == "best" or self.active):
                p.look(z)
        return z

    def move(self, p: Problem, z: Point, gradient: Point, size: float) -> Point:
        """One step from z along the shaped gradient; size is in radii."""
        return p.step(z, gradient, size)

    def _some_clean(self, p: Problem, z: Point, restart: int) -> Point:
        clean = p.rows.uniform((), "pgd clean start", restart) < self.clean_starts
        begin = p.start(False)
        if isinstance(z, dict) and isinstance(begin, dict):
            return {name: torch.where(per_row(clean, leaf), begin[name], leaf) for name, leaf in z.items()}
        return torch.where(per_row(clean, z), begin, z)  # type: ignore[arg-type]


def needs_fixed_set(attack: Any) -> None:
    """Refuse a threat without a bound, or one that gradients cannot search."""
    threat = attack.threat
    if threat.eps is None:
        raise bad("threat", repr(threat), "a threat with a radius, e.g. linf(8/255)")
    missing = [m for m in ("project", "steepest", "random_start") if not hasattr(threat, m)]
    if missing:
        raise bad("threat", repr(threat), f"a threat with {', '.join(missing)}")
