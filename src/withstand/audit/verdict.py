"""One sentence about a model that a manager understands."""

from typing import Any

from withstand.audit.measure import radius_text, threat_text
from withstand.audit.scorecard import Scorecard


def verdict(card: Scorecard, model: str) -> str:
    """What the model withstands, and whether the numbers can be trusted."""
    clean = card.metrics("clean_accuracy", model)
    robust = card.metrics("robust_accuracy", model)
    if not clean:
        return "Clean accuracy was not measured."
    said = f"Right on {clean[0][1].value:.0%} of ordinary inputs"
    if robust:
        worst = min(robust, key=lambda r: r[1].value)[1]
        said += f", and on {worst.value:.0%} when someone may change {_change(worst.condition)}"
    fails = [f.name for r in card.results if r.model == model for f in r.flags if f.level == "fail"]
    warns = [f.name for r in card.results if r.model == model for f in r.flags if f.level == "warn"]
    if fails:
        return f"{said}; do not trust the second number: {', '.join(fails)}."
    return f"{said}; {len(warns)} warnings about how far to trust that." if warns else f"{said}."


def _change(condition: dict[str, Any]) -> str:
    """What the adversary may do, in words."""
    threat, eps = str(condition.get("threat", "")), condition.get("eps")
    if eps is None:
        return "each input"
    if threat == "linf":
        return f"each pixel by up to {radius_text(eps)}"
    return f"each image by up to {threat_text(threat, eps)}"
