"""Indicators about the model: what it returns, and what it does inside."""

import numpy as np

from withstand.audit.trust import Evidence, Finding, Indicator, level
from withstand.audit.trust.evidence import ENOUGH
from withstand.registry import component

SPREAD = 1e-4
ROUNDED = 24 * np.log(2)
UNDERFLOWN = 126 * np.log(2)
CALLS = 5


@component("indicator", "non_deterministic_model")
class NonDeterministicModel(Indicator):
    """The model answers the same input differently from run to run."""

    meaning = "An attack follows one draw of the noise and is judged on another, so it looks weaker than it is."
    measured = (
        "The same batch passes five times. Seen: examples whose output, scaled to length 1, moves, and by how "
        "much at most."
    )
    threshold = (
        "Warns when an output moves by more than 1e-4 (AutoAttack's figure: a hundred times what the order of "
        "float32 sums changes), fails when a predicted class changes."
    )
    advice = (
        "Attack the average over draws: add views=[eot(20)] to the attack, and repeat the evaluation of every point."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        rows = seen.rows.where(probe="repeat")
        if not len(rows):
            return None
        moved, flipped, most = int((rows.value > SPREAD).sum()), int((~rows.outcome).sum()), float(rows.value.max())
        said = f"The output moves on {moved} of {len(rows)} inputs, by at most {most:.2g}; {flipped} change class."
        evidence = {"examples": len(rows), "moved": moved, "changed_class": flipped, "largest": most}
        return Finding("fail" if moved and flipped else "warn" if moved else "pass", said, evidence)


@component("indicator", "probability_outputs")
class ProbabilityOutputs(Indicator):
    """The model returns probabilities (or one-hot answers) where logits are expected."""

    meaning = "Losses apply softmax themselves; applied twice it flattens them until their gradients vanish."
    measured = "Outputs that are all at least 0 and sum to 1 within 0.001, over all examples."
    threshold = "Fails when every output is such a vector: logits are so by accident with a chance of nil."
    advice = (
        "Return the layer before the softmax, or load the model with outputs='probabilities', which takes the "
        "logarithm."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        lowest = seen.numbers(probe="output", measure="lowest")
        total = seen.numbers(probe="output", measure="sum")
        if not len(total):
            return None
        such = int(((lowest >= 0) & (np.abs(total - 1) < 1e-3)).sum())
        said = f"{such} of {len(total)} outputs are probabilities."
        return Finding("fail" if such == len(total) else "pass", said, {"examples": len(total), "probabilities": such})


@component("indicator", "saturated_loss")
class SaturatedLoss(Indicator):
    """The logits are so far apart that the cross-entropy is rounded away."""

    meaning = (
        "The attack then follows rounding errors. Losses that do not depend on the scale (dlr, margin) still work."
    )
    measured = (
        "The gap g of the label's logit over the log-sum-exp of the others on examples that the model gets right."
        " In float32 the label's part of the gradient is rounded to 0 above g = 24 ln 2 = 16.6, all parts "
        "underflow above g = 126 ln 2 = 87.3."
    )
    threshold = (
        "Fails when surely (95 % interval) more than 5 % of the examples lie above 87.3; warns when more than "
        "half lie above twice 16.6. Confident ordinary networks have gaps of 5 to 30, where the other classes' "
        "parts still lead the attack."
    )
    advice = "Attack with objective=dlr or margin, or divide the logits by a constant, which changes no decision."

    def __call__(self, seen: Evidence) -> Finding | None:
        gap = np.array(list(seen.values(probe="clean").values()))
        if len(gap) < ENOUGH:
            return None
        rounded, gone = int((gap > 2 * ROUNDED).sum()), int((gap > UNDERFLOWN).sum())
        serious = level(gone, len(gap)) == "fail"
        said = f"The median gap between the logits is {np.median(gap):.3g}; {gone} of {len(gap)} lie above 87.3."
        evidence = {"examples": len(gap), "median_gap": float(np.median(gap)), "above_33": rounded, "above_87": gone}
        return Finding("fail" if serious else "warn" if rounded > len(gap) / 2 else "pass", said, evidence)


@component("indicator", "optimisation_at_inference")
class OptimisationAtInference(Indicator):
    """The model optimises something while it answers."""

    meaning = (
        "The gradient through such a loop is missing, or so deep that it explodes; attacks fail without robustness."
    )
    measured = (
        "One forward pass is watched from outside: operations that belong to a backward pass, and how often one "
        "layer with parameters is called."
    )
    threshold = (
        "Fails when any backward pass runs inside the forward pass: no ordinary network has one. Warns when a "
        "layer is called more than 5 times: shared layers are called a few times, loops of purification ten times"
        " and more."
    )
    advice = (
        "Attack the whole system: through the loop (few steps, then more), around it (BPDA with the identity), "
        "and with black-box attacks; count the worst for each example."
    )

    def __call__(self, seen: Evidence) -> Finding | None:
        backward = seen.numbers(probe="inside", measure="backward")
        if not len(backward):
            return None
        inside, calls = int(backward.max()), int(seen.numbers(probe="inside", measure="calls").max())
        said = (
            f"{inside} operations of a forward pass belong to a backward pass; a layer is called up to {calls} times."
        )
        evidence = {"backward_operations": inside, "layer_calls": calls}
        return Finding("fail" if inside else "warn" if calls > CALLS else "pass", said, evidence)
