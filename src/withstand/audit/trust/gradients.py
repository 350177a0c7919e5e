"""Indicators about the gradient: is it there, and does it tell the truth?"""

import numpy as np

from withstand.audit.trust import Evidence, Finding, Indicator, level, worst
from withstand.audit.trust.evidence import ENOUGH, SHARES
from withstand.protocols import Level
from withstand.registry import component

WRONG = 0.5


@component("indicator", "zero_gradients")
class ZeroGradients(Indicator):
    """The gradient is exactly zero, or not a number, where the attack starts."""

    meaning = "A gradient attack cannot leave such a point: what it reports as robust was never attacked."
    measured = (
        "The gradients of the cross-entropy and of the DLR loss (which no scale of the logits can flatten; the "
        "margin with two classes) at the clean points. Seen: examples whose every entry is exactly 0, or with an "
        "entry that is not finite."
    )
    threshold = SHARES + " An ordinary network has none: its gradient is small at worst."
    advice = (
        "Find the step that cuts the gradient (rounding, codecs, argmax, saturation). Replace its backward pass "
        "(BPDA), take the DLR or margin loss, and attack with square, which needs no gradient."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        counts, n = {}, 0
        for objective in ("cross_entropy", "dlr", "margin"):
            values = np.array(list(seen.values(probe="gradient", objective=objective).values()))
            if len(values):
                counts[objective], n = int(((values == 0) | np.isnan(values)).sum()), len(values)
        if n < ENOUGH:
            return None
        said = " and ".join(f"{k} of {n} examples for {name}" for name, k in counts.items())
        levels: list[Level] = [level(k, n) for k in counts.values()]
        return Finding(worst(*levels), f"No usable gradient at {said}.", {"examples": n, **counts})


@component("indicator", "wrong_gradient")
class WrongGradient(Indicator):
    """The gradient does not predict how the loss changes."""

    meaning = (
        "The attack is led astray: the gradient was changed on the way back, or the function has steps it cannot show."
    )
    measured = (
        "Slopes of the runner-up's logit over the label's, by autograd and by central differences of a quarter of"
        " a grey level, along the gradient's signs and along 8 random sign patterns. Randomised models use the "
        "same draws in all passes."
    )
    threshold = (
        "An example counts when |difference| exceeds half of |slope| + |prediction|, that is when they differ by "
        "more than a factor of 3 or in sign; kinks of ordinary networks cost a few percent. " + SHARES
    )
    advice = (
        "Look for backward hooks, custom autograd functions, straight-through steps, quantised or winner-take-all"
        " activations. Average gradients over a neighbourhood, use BPDA with a smooth stand-in, and trust "
        "black-box attacks more."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        values = np.array(list(seen.values(probe="slope").values()))
        values = values[~np.isnan(values)]
        if len(values) < ENOUGH:
            return None
        k, n = int((values > WRONG).sum()), len(values)
        said = f"The gradient is off by more than a factor of 3 at {k} of {n} examples."
        return Finding(level(k, n), said, {"examples": n, "wrong": k, "median_disagreement": float(np.median(values))})


@component("indicator", "break_at_the_clipping_bounds")
class BreakAtTheClippingBounds(Indicator):
    """The model behaves differently at the ends of the input range."""

    meaning = (
        "Attacks clip to the range, so they start or end exactly there: they are blind, or find what is nowhere else."
    )
    measured = (
        "Two ways. Blind: at values on the bounds the gradient is exactly 0 although moving them inward by 1/32 "
        "of the range changes the output (a model that clips or rescales its input). Brittle: adversarial points "
        "that stop being adversarial when they are moved a quarter of a grey level inside the range."
    )
    threshold = (
        "Blind: " + SHARES + " Brittle: warns when a quarter and fails when half of at least ten adversarial points "
        "break; of points just past a smooth boundary a few in a hundred do."
    )
    advice = (
        "Start attacks from a random point (random_start=True), so that values leave the bounds; let the attack's"
        " box be the model's own (Space.box); replace clamps in the model by BPDA."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        tested, blind = seen.tested(probe="blind"), seen.broken(probe="blind")
        fooled, lost = seen.tested(probe="inward"), seen.broken(probe="inward")
        if not len(seen.rows.where(probe="steps")):
            return None
        share = len(lost) / len(fooled) if len(fooled) >= ENOUGH else 0.0
        brittle: Level = "fail" if share >= 0.5 else "warn" if share >= 0.25 else "pass"
        found = worst(level(len(blind), len(tested)) if len(tested) >= ENOUGH else "pass", brittle)
        said = (
            f"The gradient misses the values on the bounds at {len(blind)} of {len(tested)} examples that have some; "
            f"{len(lost)} of {len(fooled)} adversarial points exist only at the bounds."
        )
        evidence = {
            "examples": len(tested),
            "blind": len(blind),
            "adversarial": len(fooled),
            "only_at_bounds": len(lost),
        }
        return Finding(found, said, evidence)
