"""The fast gradient sign method."""

from withstand.attacks.engine import Attack, Point, Problem
from withstand.attacks.pgd import needs_fixed_set
from withstand.objectives import CrossEntropy, ObjectiveField
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("attack", "fgsm", systems=("classic_attacks",))
class FGSM(Attack):
    """One full steepest step from the clean point: P(x + eps * steepest(grad objective(x))).

    Reference: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", 2015, arXiv 1412.6572.
    """

    threat: ThreatField = Linf(8 / 255)
    objective: ObjectiveField = CrossEntropy()

    def __post_init__(self) -> None:
        needs_fixed_set(self)

    def search(self, p: Problem) -> Point | None:
        z = p.start(random=False)
        gradient = p.gradient(z)
        z, gradient = p.drop_done(z, gradient)
        if p.finished:
            return None
        z = p.step(z, gradient, 1.0)
        if self.keep == "best":
            p.look(z)
        return z
