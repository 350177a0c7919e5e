"""Projected gradient descent, with any threat, objective, parameterisation, views and shapings."""

from typing import Any

from withstand.attacks.engine import Attack, Point, Problem
from withstand.errors import bad
from withstand.objectives import CrossEntropy, ObjectiveField
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("attack", "pgd", systems=("classic_attacks",))
class PGD(Attack):
    """Projected gradient descent: steepest steps, each projected back into the threat.

    z <- P(z + a * steepest(grad objective(z))), a = step * eps.

    threat: where to search. steps: gradient steps. step: length of a step as a share of eps; None takes 2.5 / steps.
    random_start: begin at a random point of the set instead of the clean one. restarts: further runs for examples that
    still stand. objective: what is increased. views, shapings: wrap the gradient (e.g. `eot(20)`, `momentum(1.0)`).
    parameterisation: what moves instead of pixels.

    With random_start=False it is the basic iterative method (BIM, Kurakin et al., 2017, arXiv 1607.02533); with one full
    step besides, FGSM.

    Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, arXiv 1706.06083.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 10
    step: float | None = None
    random_start: bool = True
    restarts: int = 1
    objective: ObjectiveField = CrossEntropy()
    views: tuple[Any, ...] = ()
    shapings: tuple[Any, ...] = ()
    parameterisation: Any = None

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        if self.steps < 1:
            raise bad("steps", self.steps, "a whole number >= 1")
        if self.restarts < 1:
            raise bad("restarts", self.restarts, "a whole number >= 1")
        if self.step is not None and self.step <= 0:
            raise bad("step", self.step, "a share of eps > 0, or None for 2.5 / steps")

    def search(self, p: Problem) -> Point:
        size = self.step if self.step is not None else 2.5 / self.steps
        z: Point = p.x
        if self.random_start and (self.keep == "best" or self.active):
            p.clean  # noqa: B018 (the clean point counts as a candidate)
        for restart in range(self.restarts):
            p.restart()
            if p.finished:
                break
            z = p.start(self.random_start, "pgd", restart)
            for _ in range(self.steps):
                gradient = p.gradient(z)
                z, gradient = p.drop_done(z, gradient)
                if p.finished:
                    break
                z = p.step(z, gradient, size)
            if not p.finished and (self.keep == "best" or self.active):
                p.look(z)
        return z


def needs_fixed_set(attack: Any) -> None:
    """Refuse a threat without a bound, or one that gradients cannot search."""
    threat = attack.threat
    if threat.eps is None:
        raise bad("threat", repr(threat), "a threat with a radius, e.g. linf(8/255)")
    missing = [m for m in ("project", "steepest", "random_start") if not hasattr(threat, m)]
    if missing:
        raise bad("threat", repr(threat), f"a threat with {', '.join(missing)}")
