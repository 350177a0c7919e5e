"""Indicators about the attacks: more effort must never find less."""

import itertools

import numpy as np

from withstand.audit.trust import Evidence, Finding, Indicator, level, worst
from withstand.audit.trust.evidence import ENOUGH, SHARES
from withstand.audit.trust.probes import LADDER, PARTS, STARTS
from withstand.registry import component

RISE = 1e-6
MISSED = " An example is affected when the weaker attack breaks it and the stronger one does not."


@component("indicator", "loss_does_not_rise_with_steps")
class LossDoesNotRise(Indicator):
    """The loss never rises above its start while the attack takes its steps."""

    meaning = "Following the gradient of a loss must make it grow; where it does not, the attack is not searching."
    measured = (
        "PGD on the cross-entropy from the clean point. Seen: examples whose loss (from the logits in float64) at"
        " no step exceeds that at the start by more than a millionth of it."
    )
    threshold = SHARES
    advice = (
        "Check the gradient first (see the other indicators); then smaller steps, another objective, random starts."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        steps = sorted(c["step"] for c in seen.rows.where(probe="steps").conditions())
        start = seen.values(probe="steps", step=0)
        if len(start) < ENOUGH:
            return None
        highest = dict.fromkeys(start, -1.0)
        for step in steps[1:]:
            for i, value in seen.values(probe="steps", step=step).items():
                highest[i] = max(highest[i], value)
        flat = [i for i, value in start.items() if not highest[i] > value * (1 + RISE)]
        said = f"The loss never rises at {len(flat)} of {len(start)} examples in {steps[-1]} steps."
        return Finding(
            level(len(flat), len(start)), said, {"examples": len(start), "flat": len(flat), "steps": steps[-1]}
        )


@component("indicator", "success_does_not_rise_with_eps")
class SuccessDoesNotRise(Indicator):
    """A larger radius does not help the attack."""

    meaning = "A larger set holds the smaller one, so an attack that finds less there is failing."
    measured = (
        "The same attack at 1/4, 1/2, 1, 2 and 4 times the radius (PGD; Square with a fifth of its queries on "
        "black boxes). An example is affected when it falls at one radius and stands at the next; the worst step "
        "of the ladder counts."
    )
    threshold = SHARES
    advice = (
        "Draw the curve finer, give larger radii more steps, and count an example as broken once any smaller "
        "radius breaks it."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        name = "pgd" if seen.tested(probe="attack", attack="pgd") else "square"
        tested = [seen.tested(probe="attack", attack=name, times=t) for t in LADDER]
        broken = [seen.broken(probe="attack", attack=name, times=t) for t in LADDER]
        n = len(tested[0])
        if n < ENOUGH or any(len(t) != n for t in tested):
            return None
        k = max(len(small - large) for small, large in itertools.pairwise(broken))
        said = f"At most {k} of {n} examples fall at one radius and stand at the next larger one."
        return Finding(
            level(k, n), said, {"examples": n, "lost": k, **{f"broken_x{t:g}": len(b) for t, b in zip(LADDER, broken)}}
        )


@component("indicator", "unbounded_attack_fails")
class UnboundedAttackFails(Indicator):
    """An attack that may change everything does not break every example."""

    meaning = (
        "Without a bound the input may become one of another class; whatever stands then, stands because the "
        "attack fails."
    )
    measured = (
        "PGD on the cross-entropy and on the margin inside the input range alone, with twice the steps. Seen: "
        "examples that stand under it and at every smaller radius. Not measured under a mask, or without a range."
    )
    threshold = SHARES
    advice = (
        "Do not report robust accuracies before this reaches 0 %: fix the gradient or take an attack that needs none."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        tested = seen.tested(probe="attack", attack="pgd", times="unbounded")
        if len(tested) < ENOUGH:
            return None
        broken = seen.broken(probe="attack", attack="pgd") | seen.broken(probe="attack", attack="pgd_margin")
        k, n = len(tested - broken), len(tested)
        return Finding(level(k, n), f"{k} of {n} examples stand without any bound.", {"examples": n, "standing": k})


class _Weaker(Indicator):
    """A weaker attack breaks what the white-box attack leaves standing."""

    weaker = ""
    said = ""

    def __call__(self, seen: Evidence) -> Finding | None:
        tested, broken = seen.white_box
        tested = tested & seen.tested(probe="attack", attack=self.weaker, times=1.0)
        if len(tested) < ENOUGH:
            return None
        return _missed(self.said, seen.broken(probe="attack", attack=self.weaker, times=1.0), broken, tested)


@component("indicator", "single_step_beats_iterative")
class SingleStepBeatsIterative(_Weaker):
    """One gradient step breaks what many steps leave standing."""

    meaning = "Many steps can do all that one can: the iterations get stuck, as after training on single steps."
    measured = "FGSM against the white-box probes (PGD on cross-entropy and on margin) at the same radius." + MISSED
    threshold = SHARES
    advice = (
        "More, smaller steps, random restarts, step sizes that adapt (apgd); count the worst of all for each example."
    )
    weaker, said = "fgsm", "A single step"


@component("indicator", "single_step_overshoots")
class SingleStepOvershoots(Indicator):
    """Part of a gradient step fools the model where the whole step does not."""

    meaning = (
        "Attacks of a single step then find far less than there is: the boundary is bent around the points where they "
        "land, as training on single steps bends it when it collapses (catastrophic overfitting)."
    )
    measured = (
        f"From {STARTS} random points of the set a gradient step across all of it, looked at in {PARTS} parts. Seen: the "
        "mean share of points at which the model is right and from which a part of the step turns the answer wrong "
        "although the whole step leaves it right (after Kim, Lee, Lee, 2021, arXiv 2010.01799)."
    )
    threshold = (
        "Warns and fails when the share, less 1.96 standard errors over the examples, exceeds 2.5 % and 5 %. Ordinary "
        "networks and soundly trained ones show 0 to 2 %, collapsed ones 6 to 21 % (measured on small images)."
    )
    advice = (
        "Believe no figure of a single-step attack (fgsm) on this model: attack with many steps (autoattack). In "
        "training, let an attack of several steps judge each epoch, and keep the best."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        shares = np.array(list(seen.values(probe="overshoot").values()))
        n = len(shares)
        if n < ENOUGH:
            return None
        least = shares.mean() - 1.96 * shares.std(ddof=1) / np.sqrt(n)
        tested = seen.tested(probe="overshoot")
        standing = {a: len(tested - seen.broken(probe="attack", attack=a, times=1.0)) for a in ("fgsm", "pgd")}
        said = (
            f"From {shares.mean():.1%} of random points the whole step misses what a part of it finds; of {n} examples "
            f"{standing['fgsm']} stand under a single step and {standing['pgd']} under many."
        )
        evidence = {"examples": n, "share": float(shares.mean()), **{f"standing_{a}": k for a, k in standing.items()}}
        return Finding("fail" if least > 0.05 else "warn" if least > 0.025 else "pass", said, evidence)


@component("indicator", "noise_beats_attack")
class NoiseBeatsAttack(_Weaker):
    """Random noise breaks what the attack leaves standing, or as much as the attack does."""

    meaning = "Twenty blind guesses should be far weaker than a search; here the search is no search."
    measured = "Twenty uniformly random points of the set against the white-box probes." + MISSED
    threshold = SHARES + " The same when noise breaks as many examples as the attack does, unless those are all."
    advice = "Check the gradient; average it over draws (eot) where the model is random or jagged."
    weaker, said = "noise", "Random noise"

    def __call__(self, seen: Evidence) -> Finding | None:
        found = super().__call__(seen)
        if found is not None:
            e = found.evidence
            if e["weaker"] >= e["white_box"] and e["white_box"] < e["examples"]:
                found.level = worst(found.level, level(e["weaker"], e["examples"]))
        return found


@component("indicator", "black_box_beats_white_box")
class BlackBoxBeatsWhiteBox(_Weaker):
    """An attack that only sees scores breaks what the white-box attack leaves standing."""

    meaning = "Knowing more cannot hurt: the gradients are masked."
    measured = (
        "Square, with few queries, against the white-box probes at the same radius (images, linf and l2); and the"
        " check `blackbox` against the check `robust` wherever both ran with one threat." + MISSED
    )
    threshold = SHARES
    advice = "Believe the black-box figure, and look for what masks the gradient; attack with square and more queries."
    weaker, said = "square", "A black-box search"
    after = ("robust", "blackbox")

    def __call__(self, seen: Evidence) -> Finding | None:
        return _more_serious(super().__call__(seen), _between(seen, "blackbox", "A black-box attack"))


@component("indicator", "transfer_beats_white_box")
class TransferBeatsWhiteBox(Indicator):
    """Examples made on another model break what the white-box attack leaves standing."""

    meaning = "The model is not robust there, its gradients only fail to say so."
    measured = (
        "The check `transfer` against the check `robust` and the white-box probes, wherever they ran with one "
        "threat." + MISSED
    )
    threshold = SHARES
    advice = "Count transferred points in the robust accuracy, and start the white-box attack from them."
    after = ("robust", "transfer")

    def __call__(self, seen: Evidence) -> Finding | None:
        return _between(seen, "transfer", "Transfer from another model")


def _between(seen: Evidence, check: str, said: str) -> Finding | None:
    """The check's rows against those of the white box, threat by threat; the most serious one counts."""
    strong = seen.check("robust")
    probed, fell = seen.white_box
    if seen.threat not in strong:
        strong[seen.threat] = probed, set()
    found: Finding | None = None
    for threat, (tested, broken) in seen.check(check).items():
        both = tested & strong[threat][0] if threat in strong else set()
        if len(both) >= ENOUGH:
            white = strong[threat][1] | (fell if threat == seen.threat else set())
            found = _more_serious(found, _missed(f"{said} under {threat}", broken, white, both))
    return found


def _missed(said: str, weak: set[int], strong: set[int], tested: set[int]) -> Finding:
    """What a weaker attack broke and a stronger one did not."""
    missed, weak, strong, n = len((weak - strong) & tested), weak & tested, strong & tested, len(tested)
    text = (
        f"{said} breaks {len(weak)} of {n} examples, the white-box attack {len(strong)}; it missed {missed} of those."
    )
    return Finding(
        level(missed, n), text, {"examples": n, "missed": missed, "weaker": len(weak), "white_box": len(strong)}
    )


def _more_serious(a: Finding | None, b: Finding | None) -> Finding | None:
    if a is None or b is None:
        return a or b
    return b if worst(a.level, b.level) != a.level else a
