"""How the report says things: titles of metrics, numbers with their units, conditions, p-values.

The page and the terminal write numbers in the same way because both ask here.
"""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeGuard

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
NONE = "\N{EM DASH}"

METRICS: dict[str, tuple[str, str]] = {
    "clean_accuracy": ("Accuracy on clean data", "share of unchanged examples that the model gets right"),
    "accuracy": ("Accuracy", "share of examples that the model gets right"),
    "robust_accuracy": ("Accuracy under attack", "share of examples that stay right whatever the attack found"),
    "curve_accuracy": ("Accuracy as the change grows", "share of examples that stay right up to this size of change"),
    "robust_overfitting_gap": (
        "Robust overfitting gap",
        "robust accuracy on validation examples at the best epoch less that at the last",
    ),
    "robust_generalisation_gap": (
        "Robust generalisation gap",
        "robust accuracy on training examples in the last epoch less that on validation examples",
    ),
    "insertion_auc": (
        "Salient pixels inserted",
        "mean probability of the class while its most salient pixels are put into a blurred image",
    ),
    "deletion_auc": (
        "Salient pixels deleted",
        "mean probability of the class while its most salient pixels are taken away",
    ),
    "gradient_gini": ("Concentration of the gradient", "Gini index of the pixels' saliency; 1: one pixel holds all"),
    "gradient_alignment": ("Alignment of the gradient", "length of the image along the direction of its gradient"),
    "distances_found": ("Errors found nearby", "share of examples for which the search found any error at all"),
    "distance_quantile": ("Distance to an error", "this share of the examples needs a smaller change to turn wrong"),
    "surrogate_fooled": ("Surrogate fooled", "share of the transferred examples that fool the model they were made on"),
    "withstood": ("Withstood", "share of examples that the model withstood"),
    "attack_success_rate": ("Success of the attack", "share of the examples first right that the attack turned wrong"),
    "worst_class_accuracy": ("Accuracy of the worst class", "the lowest accuracy among the classes"),
    "worst_class_robust_accuracy": ("Worst class under attack", "the lowest accuracy under attack among the classes"),
    "ece": ("Calibration error (ECE)", "mean gap between stated confidence and accuracy, over bins of confidence"),
    "nll": ("Negative log-likelihood", "mean surprise at the true class; lower is better"),
    "brier": ("Brier score", "mean squared error of the predicted probabilities; lower is better"),
    "median_distance": ("Median distance to an error", "half of the examples need a smaller change to turn wrong"),
    "mean_distance": (
        "Mean distance to an error",
        "mean size of the smallest change that turns an example wrong",
    ),
    "corruption_accuracy": ("Accuracy on corrupted data", "share of corrupted examples that the model gets right"),
    "corruption_error": ("Error on corrupted data", "share of corrupted examples that the model gets wrong"),
    "dropped_accuracy": (
        "Dropped accuracy",
        "accuracy on the images as they are less that on their edits; inver is the control",
    ),
    "mean_dropped_accuracy": ("Mean dropped accuracy", "over the edits without the control"),
    "mce": ("Mean corruption error (mCE)", "corruption errors over those of a stated reference, averaged over kinds"),
    "relative_mce": ("Relative mCE", "rise of the error by corruption over the reference's rise, averaged over kinds"),
    "transfer_accuracy": ("Accuracy under transferred attacks", "share right on examples made against another model"),
    "guided_accuracy": (
        "Accuracy beside a guided attack",
        "share right under plain attacks and under one with a guide",
    ),
    "knn_accuracy": (
        "Accuracy of the votes under attack",
        "share right by nearest neighbours under attacks that look inside; worst: under none of them wrong",
    ),
    "masking_score": ("Masking score", "what PGD-50 leaves standing beyond a guided attack of ten steps"),
    "black_box_accuracy": ("Accuracy under black-box attack", "share right against an attack that only sees answers"),
    "lists_replaced": ("Attack success rate", "share of the images whose list shares no item with the clean one"),
    "mean_queries": ("Mean queries to success", "over the examples that fell, the clean query included"),
    "mean_queries_all": ("Mean queries, failures at the budget", "over all examples"),
    "median_queries_all": ("Median queries, failures at the budget", "half of all examples cost fewer queries"),
    "stealing_queries": ("Queries spent on stealing", "once, for the substitute; not in the queries per image"),
    "amortised_queries": (
        "Mean queries, stealing included",
        "over all examples, failures at the budget, and those of stealing shared among them",
    ),
    "zero_differences": ("Directions without effect", "share of the probes that left the list's relevance as it was"),
    "median_queries": ("Median queries to success", "half of the broken examples fell to fewer queries"),
    "map": ("Mean average precision (MAP)", "precision at each relevant item of the whole ranked list, averaged"),
    "map_at_r": ("MAP@R", "precision at each relevant item among the R nearest, R items being relevant; over R"),
    "r_precision": ("R-precision", "share of relevant items among the R nearest, R items being relevant"),
    "shift": ("Shift of the output", "how far the attack moved it: cosine distance, or share of bits that flipped"),
    "chance": ("Chance", "share of the items that are relevant to a query: what a random order finds"),
    "pi_intra": ("Distance within classes", "mean cosine distance of two items of a class"),
    "pi_inter": ("Distance between classes", "mean cosine distance of two class means"),
    "pi_ratio": ("Density", "distance within classes over distance between them; smaller is denser"),
    "rho": ("Spectral decay", "0: all directions of the space are used alike"),
    "nmi": ("Clusters and classes agree (NMI)", "normalised mutual information of k-means clusters and labels"),
    "mean_distance_of_items": ("Distance of items", "mean cosine distance of two items"),
    "distinct_codes": ("Distinct codes", "different codes among the items"),
    "auroc": (
        "Unfamiliar inputs: AUROC",
        "chance that an unfamiliar input looks more suspicious than a familiar one",
    ),
    "aupr": ("Unfamiliar inputs: AUPR", "area under precision against recall, unfamiliar inputs being the positives"),
    "fpr95": ("Unfamiliar inputs: FPR95", "share of the other set mistaken when 95% are found"),
    "human_auroc": (
        "Wrong answers and unfamiliar inputs: AUROC",
        "chance that an input whose answer is wrong, or which is of no class, looks more suspicious than one answered right",
    ),
    "human_fpr95": (
        "Wrong answers and unfamiliar inputs: FPR95",
        "share of wrong answers let through when 95% of the right ones are",
    ),
    "detection_auroc": (
        "Detecting attacks: AUROC",
        "chance that a successful adversarial example looks more suspicious than a clean one",
    ),
    "detection_fpr95": ("Detecting attacks: FPR95", "share of clean examples flagged when 95% of attacks are"),
    "detection_rate": ("Detected attacks", "share of the successful adversarial examples that are flagged"),
    "undetected_success": ("Wrong and not flagged", "share of the examples first right that evade model and detector"),
    "false_alarms": ("False alarms", "share of clean examples that the detector flags"),
    "noise_alarms": ("Alarms at random noise", "share of examples that are flagged after noise of the same size"),
}
_AT = re.compile(r"(recall|map)_at_(\d+)")
_BALL = re.compile(r"(precision|recall)_at_radius_(\d+)")
_MEANT = {
    "recall": "share of the queries with a relevant item among the {k} nearest",
    "map": "precision at each relevant item among the {k} nearest, averaged over those",
}
_BARE = ("attack", "threat", "norm", "detector", "kind", "corruption", "edit")
_SPELLED = ("kind", "corruption")
_SILENT = ("measure",)  # says what a row's value is, not what was done
_UNITLESS = ("", "number")


def title(name: str) -> str:
    """The human title of a metric or a flag; unknown names are spelled out."""
    if name in METRICS:
        return METRICS[name][0]
    if found := _AT.fullmatch(name):
        return f"{'MAP' if found[1] == 'map' else 'Recall'}@{found[2]}"
    if found := _BALL.fullmatch(name):
        return f"{found[1].capitalize()} within {found[2]} bits"
    words = name.replace("_", " ").replace(".", " ").strip()
    return words[:1].upper() + words[1:] if words else "Unnamed"


def meaning(name: str) -> str:
    """One line on what a metric is; empty for names that are not ours."""
    if found := _AT.fullmatch(name):
        return _MEANT.get(found[1], "").format(k=found[2])
    return METRICS[name][1] if name in METRICS else ""


def number(value: Any, digits: int = 3) -> str:
    """A plain number with `digits` significant digits; thousands are grouped from 10,000 on; a dash for nothing."""
    if not is_number(value):
        return NONE if value is None or isinstance(value, float) else str(value)
    value = float(value)
    if value == int(value) and abs(value) < 1e15:
        text = f"{abs(int(value)):,}" if abs(value) >= 10_000 else str(abs(int(value)))
    elif abs(value) >= 10_000:
        text = f"{abs(value):,.0f}"
    elif abs(value) >= 1e-4:
        text = f"{abs(value):.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    else:
        text = f"{abs(value):.{digits - 1}e}"
    return MINUS + text if value < 0 else text


def bare(value: Any) -> str:
    """A setting or a tick: as `number`, without zeros at the end."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if is_number(value) and "." in text and "e" not in text else text


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number (truth values are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def looks_numeric(value: Any) -> bool:
    """Whether a table's cell reads as a number, such as 0.5 or "12.5%", and belongs to the right."""
    return is_number(value) or bool(re.fullmatch(r"[-+−]?[\d.,]+ ?%?", str(value)))


def quantity(value: Any, unit: str = "share") -> str:
    """A value in its unit; shares in percent with one decimal: 43.2%."""
    if not is_number(value):
        return NONE
    if unit == "share":
        return f"{100 * value:.1f}%".replace("-", MINUS)
    return radius(value) if unit == "distance" else number(value) + _spelled(unit)


def _spelled(unit: str) -> str:
    return "" if unit in (*_UNITLESS, "distance") else f" {unit}"


def interval(low: Any, high: Any, unit: str = "share") -> str:
    """Both ends of an interval: 38.1–48.5%; empty where either is missing."""
    if not (is_number(low) and is_number(high)):
        return ""
    joint = f" {DASH} " if low < 0 or high < 0 else DASH
    if unit == "share":
        return f"{100 * low:.1f}{joint}{100 * high:.1f}%".replace("-", MINUS)
    return f"{quantity(low, 'distance' if unit == 'distance' else '')}{joint}{quantity(high, unit)}"


def change(value: Any, unit: str = "share") -> str:
    """A signed difference; of shares in percentage points: +12.5 points."""
    if not is_number(value):
        return NONE
    sign = "+" if value > 0 else MINUS if value < 0 else "±"
    if unit == "share":
        return f"{sign}{abs(100 * value):.1f} points"
    return sign + quantity(abs(value), unit)


def changes(low: Any, high: Any, unit: str = "share") -> str:
    """The interval of a difference: −16.6 to +2.4 points."""
    if not (is_number(low) and is_number(high)):
        return ""
    unitless = change(low, unit).removesuffix(" points").removesuffix(f" {unit}")
    return f"{unitless} to {change(high, unit)}"


def p_value(p: Any) -> str:
    """p = 0.013, or p < 0.001 for anything smaller."""
    if not is_number(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def radius(value: Any) -> str:
    """A radius as it is usually written: 8/255 for 0.03137..., 0.3 for 0.3."""
    if is_number(value) and value > 0 and abs(value - round(value, 3)) > 1e-9:
        steps = value * 255
        if abs(steps - round(steps * 4) / 4) < 1e-6:
            return f"{round(steps * 4) / 4:g}/255"
        return f"{value:.4g}"
    return bare(value)


def evidence(name: str, value: Any) -> str:
    """One observation behind a flag; radii as such."""
    return radius(value) if name in ("eps", "radius", "distance") else number(value)


def condition(values: Mapping[str, Any]) -> str:
    """What was done to the examples: {"threat": "linf", "eps": 8 / 255, "severity": 3} -> Linf 8/255, severity 3."""
    parts, rest = [], {k: v for k, v in values.items() if k not in _SILENT}
    eps = rest.pop("eps", None)
    norm = next((rest.pop(key) for key in ("threat", "norm") if isinstance(rest.get(key), str)), "")
    if norm or eps is not None:
        shown = norm[:1].upper() + norm[1:] if norm and "(" not in norm else norm
        parts.append(f"{shown} {radius(eps)}" if norm and eps is not None else shown or f"eps {radius(eps)}")
    for key, value in rest.items():
        shown = bare(value).replace("_", " ") if key in _SPELLED else bare(value)
        parts.append(shown if key in _BARE else f"{key.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def count(n: Any, one: str, many: str = "") -> str:
    """1 example, 2,000 examples."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """0.4 s, 75 s, 12 min, 3 h 05 min."""
    if 0 < seconds < 0.05:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def date(text: str) -> str:
    """21 November 2026, 03:18 UTC, from an ISO date; anything else stays as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"
