"""One sentence about a model that a manager understands."""

from withstand.audit.measure import radius_text
from withstand.audit.scorecard import Scorecard
from withstand.protocols import Metric

_NOTHING = 0.05  # above a random order
NONE = 0.005
"""Below this share an accuracy is called none: it rounds to 0 %."""


def verdict(card: Scorecard, model: str) -> str:
    """What the model withstands, how that compares with its ordinary accuracy, and whether to believe it."""
    clean = [m for _, m in card.metrics("clean_accuracy", model)]
    if not clean and (lists := [m for _, m in card.metrics("lists_replaced", model)]):
        return _started(card, _of_lists(max(lists, key=lambda m: m.value)))
    if not clean and (found := _of_searches(card, model)):
        return _started(card, found)
    if not clean:
        return "Ordinary accuracy was not measured, so there is nothing to compare with."
    thing = "images" if len(card.data.get("shape") or ()) == 3 else "inputs"
    said = f"Right on {_share(clean[0])} of ordinary {thing}"
    corrupted = [m for _, m in card.metrics("corruption_accuracy", model)]
    if corrupted:
        said += f", on {_share(corrupted[0])} of blurred, noisy or otherwise corrupted ones"
    attacked = _worst(card, model)
    if attacked is None:
        return _started(card, f"{said}; how it fares when someone tries to fool it was not measured.")
    ordinary, left = max(clean[0].value, 1e-9), attacked.value
    joint = ", and still" if left / ordinary >= 0.8 else ", but"
    said += f"{joint} on {_share(attacked)} once {_means(attacked, thing)}"
    # what becomes of a detector says nothing about the attacks on the model
    flags = [f for r in card.results if r.model == model and not r.check.startswith("detection") for f in r.flags]
    fails = list(dict.fromkeys(f.name for f in flags if f.level == "fail"))
    if fails:
        why = f"since the attacks fail here ({', '.join(fails)})"
        return _started(card, f"{said}; that last number cannot be trusted, {why}.")
    warns = sum(f.level == "warn" for f in flags)
    doubt = f" ({warns} warning{'s' if warns > 1 else ''} about how far to trust this)" if warns else ""
    return _started(card, f"{said}: {_advice(left, ordinary)}{doubt}.")


def _of_searches(card: Scorecard, model: str) -> str:
    """Of a model that embeds or hashes: what its searches find, and what is left of that under the worst attack."""
    for name, does in (
        ("map", "Ranks what belongs together with a mean average precision of {} for ordinary {}s"),
        ("recall_at_1", "Finds an item of the right class first for {} of ordinary {}s"),
    ):
        found = [m for _, m in card.metrics(name, model)]
        clean = [m for m in found if "threat" not in m.condition]
        if not clean:
            continue
        thing = "image" if len(card.data.get("shape") or ()) == 3 else "input"
        said = does.format(_share(clean[0]), thing)
        collapsed = any(
            (f.name, f.level) == ("collapsed", "fail") for r in card.results if r.model == model for f in r.flags
        )
        if collapsed:
            return f"{said}, but all its outputs are nearly the same: its numbers under attack say little."
        attacked = [m for m in found if "threat" in m.condition]
        if not attacked:
            return f"{said}; how it fares when someone tries to fool it was not measured."
        worst = min(attacked, key=lambda m: m.value)
        left, ordinary = worst.value, max(clean[0].value, 1e-9)
        chance = next((m.value for _, m in card.metrics("chance", model)), 0.0)
        left, ordinary = max(left - chance, 0.0), max(ordinary - chance, 1e-9)
        if ordinary < _NOTHING:
            return f"{said}, where a random order has {100 * chance:.0f} %: there is little to attack."
        said += ", " + ("and still" if left / ordinary >= 0.8 else "but")
        said += f" {'' if name == 'map' else 'for '}{_share(worst)} once {_may_change(worst, thing + 's')} in the query"
        flags = [f for r in card.results if r.model == model for f in r.flags if f.level == "fail"]
        if flags:
            return f"{said}; that last number cannot be trusted ({flags[0].name})."
        return f"{said}: {_advice(left, ordinary)}."
    return ""


def _of_lists(metric: Metric) -> str:
    said = f"An outsider who sees only its ranked lists made them other lists altogether for {_share(metric)} of images"
    budget = metric.condition["queries"]
    return f"{said}, where {_may_change(metric, 'images')} and {budget:,} questions are allowed for each image."


def _worst(card: Scorecard, model: str) -> Metric | None:
    """The lowest accuracy under attack; where that is none, at the smallest radius at which it is."""
    found = [m for _, m in card.metrics("robust_accuracy", model)]
    if not found:
        inside = card.metrics("knn_accuracy", model, attack="worst")
        found = [m for _, m in (*inside, *card.metrics("black_box_accuracy", model))]
    if not found:
        return None
    worst = min(found, key=lambda m: m.value)
    if worst.value >= NONE:
        return worst
    curve = card.metrics("curve_accuracy", model, threat=worst.condition.get("threat"))
    gone = [m for m in (worst, *(m for _, m in curve)) if m.value < NONE]
    return min(gone, key=lambda m: m.condition.get("eps", float("inf")))


def _means(metric: Metric, thing: str) -> str:
    """The threat in words: who may change what by how much."""
    what = _may_change(metric, thing)
    if metric.name == "black_box_accuracy":
        what += f" by someone who sees only its answers, {metric.condition.get('queries', 0):,} at most"
    return what


def _may_change(metric: Metric, thing: str) -> str:
    threat, eps = str(metric.condition.get("threat", "")), metric.condition.get("eps", 0.0)
    one = thing.removesuffix("s")
    if threat == "linf":
        unit = "pixel" if thing == "images" else "value"
        return f"each {unit} may change by {radius_text(eps)}"
    if threat == "l0":
        return f"{eps:g} values of each {one} may change"
    return f"each {one} may change by {radius_text(eps)} ({threat.capitalize()})"


def _advice(left: float, ordinary: float) -> str:
    kept = left / ordinary
    if kept < 0.1:
        return "do not use it where someone gains from fooling it"
    if kept < 0.5:
        return "someone who tries to fool it will mostly succeed"
    if kept < 0.8:
        return f"someone who tries to fool it takes away {1 - kept:.0%} of what it gets right".replace("%", " %")
    return "it withstands such changes"


def _share(metric: Metric) -> str:
    """A share as people say it: 91 %, about 34 % where the interval is wider than ten points, none."""
    if metric.value < NONE:
        return "none"
    wide = metric.low is not None and metric.high is not None and metric.high - metric.low > 0.1
    return ("about " if wide else "") + f"{metric.value:.0%}".replace("%", " %")


def _started(card: Scorecard, sentence: str) -> str:
    return sentence if card.complete else f"So far, with work left: {sentence[0].lower()}{sentence[1:]}"
