"""Random noise: the baseline that every attack must beat."""

from withstand.attacks.engine import Attack, Point, Problem
from withstand.attacks.engine.needs import needs_whole
from withstand.attacks.pgd import needs_fixed_set
from withstand.objectives import Margin, ObjectiveField
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("attack", "noise", systems=("classic_attacks",))
class Noise(Attack):
    """The best of several random points of the threat.

    threat: where to draw, uniformly. samples: points per example, one query each. objective: what makes a point better.
    """

    threat: ThreatField = Linf(8 / 255)
    samples: int = 100
    objective: ObjectiveField = Margin()

    access = "scores"

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        needs_whole(self, "samples")

    def search(self, p: Problem) -> Point:
        if self.keep == "best":
            p.clean  # noqa: B018 (the clean point counts as a candidate)
        z: Point = p.x
        for sample in range(self.samples):
            p.drop_done()
            if p.finished:
                break
            z = p.start(True, "noise", sample)
            if self.keep == "best":
                p.look(z)
        return z
