"""The result of an audit, as data. The page, the tables and the exit code are all made from it.

`scorecard.json` in a run folder holds exactly these fields. Figures carry their data, by kind:

- curve: {"x_label", "y_label", "x": [..], "x_ticks": [text, ..] or absent, "log_x": bool or absent,
  "series": [{"name", "y": [..], "low": [..], "high": [..]}]}
- heatmap: {"row_label", "column_label", "rows": [..], "columns": [..], "values": [[number or null]], "unit", "better"}
- bars: {"labels": [..], "y_label", "series": [{"name", "values": [..], "low": [..], "high": [..]}]}
- table: {"columns": [..], "rows": [[..]]}
- gallery: {"magnified": factor of the difference, "items": [{"id", "label", "clean_prediction", "adversarial_prediction",
  "clean_confidence", "adversarial_confidence", "distance", "condition", "clean", "adversarial", "difference"}]}, the last
  three being PNG files, relative to the run folder; also "after", a word for what was done to them, if not "attacked".
- maps: {"items": [{"id", "label", "prediction", "image", "map"}]}, the last two PNG files as well; models that show the same
  examples share their images.
- neighbours: {"unit": of distances, "items": [{"id", "label", "clean", "adversarial", "distance", "condition", "before",
  "after"}]}, the last two being lists of {"id", "label", "relevant", "distance", "image" or absent}; images as above.

Figures of the same check and title belong together across models: curves and bars are drawn over one another.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from withstand.errors import NotMet, bad, unknown
from withstand.protocols import Figure, Flag, Metric

STATUSES = ("done", "skipped", "not applicable", "failed")


@dataclass
class CheckResult:
    """One check of one model. reason: why it did not run. cost: {"forwards", "backwards", "examples"} summed over rows."""

    model: str
    check: str
    title: str
    spec: str
    status: str = "done"
    reason: str = ""
    metrics: list[Metric] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    seconds: float = 0.0
    cost: dict[str, int] = field(default_factory=dict)


@dataclass
class Comparison:
    """Two models on the same examples: how much `metric` changes from `before` to `after`, with a paired interval.

    gained, lost: ids of examples that only the second or only the first model withstood. p_value: McNemar, exact.
    """

    metric: str
    check: str
    before: str
    after: str
    difference: float
    low: float
    high: float
    p_value: float
    n: int
    gained: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    condition: dict[str, Any] = field(default_factory=dict)


@dataclass
class Scorecard:
    """What an audit found.

    verdict: one sentence for each model. models: by name, {"spec", "fingerprint", "parameters", "classes", "access"}.
    data: {"name", "fingerprint", "examples", "shape", "classes"}. complete: False while work is left.
    """

    run: str
    preset: str = ""
    command: str = ""
    created: str = ""
    seed: int = 0
    device: str = "cpu"
    complete: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, str] = field(default_factory=dict)
    results: list[CheckResult] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    folder: str = ""

    def of(self, check: str, model: str | None = None) -> list[CheckResult]:
        """The results of a check, for one model or all."""
        return [r for r in self.results if r.check == check and model in (None, r.model)]

    def metrics(self, name: str | None = None, model: str | None = None, **condition: Any) -> list[tuple[str, Metric]]:
        """All (model, metric) with this name, model and condition (numbers to 1e-9); None stands for any."""
        return [
            (r.model, m)
            for r in self.results
            if model in (None, r.model)
            for m in r.metrics
            if name in (None, m.name) and all(_equal(m.condition.get(k), v) for k, v in condition.items())
        ]

    def metric(self, name: str, model: str | None = None, **condition: Any) -> Metric:
        """The one metric with this name. Raises BadInput where there is none or more than one."""
        found = self.metrics(name, model, **condition)
        if not found:
            raise unknown("metric", name, {m.name for r in self.results for m in r.metrics})
        if len(found) > 1:
            raise bad("metric", f"{len(found)} matches for {name!r}", "one", "Name the model or the condition.")
        return found[0][1]

    def unmet(self, *requirements: str) -> list[str]:
        """Why the result does not meet requirements such as "robust_accuracy@linf:8/255=0.30"; empty where it does.

        See `withstand.audit.requirements` for how they are written. Raises: BadInput where a number was not measured.
        """
        from withstand.audit.requirements import Requirement

        return [reason for text in requirements for reason in Requirement.read(text).reasons(self)]

    def require(self, *requirements: str) -> None:
        """Raises: NotMet where `unmet` finds a reason."""
        if reasons := self.unmet(*requirements):
            raise NotMet("; ".join(reasons))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "folder"}

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: str | Path = "") -> "Scorecard":
        """What `to_json` wrote."""
        data = dict(data)
        results = [
            CheckResult(
                **{
                    **r,
                    "metrics": [Metric(**m) for m in r["metrics"]],
                    "figures": [Figure(**f) for f in r["figures"]],
                    "flags": [Flag(**f) for f in r["flags"]],
                }
            )
            for r in data.pop("results")
        ]
        comparisons = [Comparison(**c) for c in data.pop("comparisons")]
        return cls(**data, results=results, comparisons=comparisons, folder=str(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Scorecard":
        """The scorecard of a run folder."""
        path = Path(folder) / "scorecard.json"
        if not path.is_file():
            raise bad(
                "run",
                str(folder),
                "the folder of an audit, with scorecard.json in it",
                "Make one with: withstand audit MODEL --data DATA --out FOLDER",
            )
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")), folder)

    def to_html(self, path: str | Path | None = None) -> Path:
        """Write the report page; by default `report.html` in the run folder."""
        from withstand.report import write

        return write(self.to_json(), self.folder, Path(path) if path else Path(self.folder) / "report.html")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-9
    return a == b
