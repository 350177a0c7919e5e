"""One sentence about a model that a manager understands."""

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
        said += f", and on {worst.value:.0%} when someone may change each input by {worst.condition.get('threat')}"
    fails = [f.name for r in card.results if r.model == model for f in r.flags if f.level == "fail"]
    warns = [f.name for r in card.results if r.model == model for f in r.flags if f.level == "warn"]
    if fails:
        return f"{said}; do not trust the second number: {', '.join(fails)}."
    return f"{said}; {len(warns)} warnings about how far to trust that." if warns else f"{said}."
