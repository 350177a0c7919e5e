"""Requirements on a result: `[MODEL/]METRIC[@CONDITION...]=VALUE`, for exit codes and for tests.

robust_accuracy@linf:8/255=0.30          every model, under this threat, at least 0.30
after/robust_accuracy@linf:8/255=0.30    only the model named "after"
accuracy@fog=50%                         conditions of any name, by their values
ece=0.05                                 lower is better for this metric: at most 0.05
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from withstand.audit.measure import radius_text
from withstand.errors import BadInput, bad, unknown
from withstand.protocols import Metric
from withstand.registry import entries, is_component, parse

if TYPE_CHECKING:
    from withstand.audit.scorecard import Scorecard


@dataclass(frozen=True)
class Requirement:
    """One requirement. model: None = every model. conditions: threats or plain values that the metric's condition has."""

    text: str
    metric: str
    value: float
    model: str | None = None
    conditions: tuple[Any, ...] = ()

    @classmethod
    def read(cls, text: str) -> "Requirement":
        """Raises: BadInput where the text does not say a metric and a value."""
        left, equals, value = text.rpartition("=")
        name, *conditions = left.split("@")
        model, slash, metric = name.rpartition("/")
        if not equals or not metric.strip():
            raise bad("fail-under", repr(text), "METRIC=VALUE or METRIC@THREAT=VALUE", _EXAMPLE)
        return cls(
            text,
            metric.strip(),
            _number(value, text),
            model if slash else None,
            tuple(_condition(c) for c in conditions),
        )

    def reasons(self, card: "Scorecard") -> list[str]:
        """Why the scorecard does not meet this, one sentence for each number that is too low; empty where it does.

        Raises: BadInput where what is asked for was not measured.
        """
        return [
            f"{self.text}: {model} has {metric.name} {metric.value:.4g}{_said(metric)}, "
            f"{'above' if metric.better == 'lower' else 'under'} {self.value:.4g}"
            for model, metric in self._measured(card)
            if (metric.value > self.value if metric.better == "lower" else not metric.value >= self.value)
        ]

    def check_model(self, models: Collection[str]) -> None:
        """Raises: BadInput where the model that is named is none of these."""
        if self.model is not None and self.model not in models:
            raise unknown(f"fail-under {self.text}: model", self.model, models)

    def _measured(self, card: "Scorecard") -> list[tuple[str, Metric]]:
        self.check_model(card.models)
        named = card.metrics(self.metric)
        if not named:
            known = {m.name for _, m in card.metrics()}
            raise unknown(f"fail-under {self.text}: metric that was measured", self.metric, known)
        found = [(model, m) for model, m in named if all(_holds(c, m.condition) for c in self.conditions)]
        if not found:
            known = sorted({_said(m).removeprefix(" at ") for _, m in named})
            raise BadInput(f"fail-under {self.text}: {self.metric} was not measured there, but at: {'; '.join(known)}")
        for model in card.models if self.model is None else [self.model]:
            if all(name != model for name, _ in found):
                why = "; ".join(f"{r.check}: {r.reason}" for r in card.results if r.model == model and r.reason)
                raise BadInput(
                    f"fail-under {self.text}: not measured for {model}{f' ({why})' if why else ''}. "
                    "Name the models that must meet it: MODEL/METRIC=VALUE"
                )
        return [(model, m) for model, m in found if self.model in (None, model)]


_EXAMPLE = "For example robust_accuracy@linf:8/255=0.30"


def _number(text: str, whole: str) -> float:
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise bad("fail-under", f"{text!r} in {whole!r}", "a number, e.g. 0.30 or 30%", _EXAMPLE)
    return value


def _condition(text: str) -> Any:
    """A threat where the text begins with the name of one, else a number or the text itself."""
    name = text.partition(":")[0].partition("(")[0].strip()
    if name in {e.name for e in entries("threat")} and name != text.strip():
        return parse(text, "threat")
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _holds(wanted: Any, condition: dict[str, Any]) -> bool:
    if is_component(wanted):
        eps = condition.get("eps")
        same = eps is None if wanted.eps is None else eps is not None and abs(eps - wanted.eps) <= 1e-9
        return same and condition.get("threat") == wanted.component_name
    if isinstance(wanted, float):
        return any(
            isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v - wanted) <= 1e-9
            for v in condition.values()
        )
    return any(v == wanted for v in condition.values()) or wanted in condition


def _said(metric: Metric) -> str:
    """Where a metric was measured, in words."""
    condition = dict(metric.condition)
    threat, eps = condition.pop("threat", None), condition.pop("eps", None)
    plain = [] if threat is None else [threat if eps is None else f"{threat}:{radius_text(eps)}"]
    plain += [str(v) if isinstance(v, (str, int)) else f"{k}={v:.4g}" for k, v in condition.items()]
    return f" at {', '.join(plain)}" if plain else ""
