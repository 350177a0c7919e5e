"""Whether to believe the robustness figures: trust indicators from short probes and from the rows of other checks."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

import numpy as np

from withstand.audit.check import Check, Table
from withstand.audit.measure import threat_text
from withstand.audit.trust import Evidence, assess, indicators
from withstand.audit.trust.probes import LADDER, Probes
from withstand.errors import bad
from withstand.metrics import wilson
from withstand.protocols import Batch, Context, Figure, Findings, Row, Target
from withstand.registry import component
from withstand.threats import L2, Linf, Masked, ThreatField


@component("check", "trust")
class Trust(Check):
    """Trust indicators: is the model robust, or do the attacks fail?

    threat: where the probes attack, linf or l2; take that of the robust check. examples: the first so many of the data.
    steps: gradient steps of the iterative probes (twice as many without a bound). queries: of the search by scores (Square).
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 20
    queries: int = 200
    examples: int | None = field(default=64, kw_only=True)

    title = "Can the numbers be trusted?"
    compared = False
    access = frozenset({"scores"})

    def __post_init__(self) -> None:
        eps = self.threat.eps
        norm = self.threat.inner if isinstance(self.threat, Masked) else self.threat
        if not isinstance(eps, float) or eps <= 0 or not isinstance(norm, (Linf, L2)):
            allowed = "linf or l2 with one radius > 0, e.g. linf(8/255)"
            raise bad("threat", repr(self.threat), allowed, "In other norms plain PGD is too weak to judge others by.")
        for name in ("steps", "queries"):
            if getattr(self, name) < 1:
                raise bad(name, getattr(self, name), "a whole number >= 1")

    @property
    def after(self) -> tuple[str, ...]:  # type: ignore[override]
        """The checks whose rows some indicator reads."""
        return tuple(sorted({name for indicator in indicators().values() for name in indicator.after}))

    def passes(self, target: Target) -> float:
        if "gradients" not in target.access:
            return self.queries + 30
        return self.steps * (len(LADDER) + 6) + self.queries / 2 + 95

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        return list(Probes(target, shard, self.threat, self.steps, self.queries, ctx))

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        seen = Evidence(rows, others, threat_text(self.threat.component_name, self.threat.eps))  # type: ignore[attr-defined]
        return Findings(figures=list(_figures(seen)), flags=assess(seen))


def _figures(seen: Evidence) -> Iterable[Figure]:
    steps = sorted(c["step"] for c in seen.rows.where(probe="steps").conditions())
    if steps:
        losses = [np.array(list(seen.values(probe="steps", step=s).values())) for s in steps]
        quartiles = [[float(np.quantile(v, q)) for v in losses] for q in (0.25, 0.5, 0.75)]
        yield Figure(
            "curve",
            "Loss against steps",
            {
                "x_label": "gradient steps",
                "y_label": "cross-entropy of the label",
                "x": steps,
                "series": [{"name": "median", "y": quartiles[1], "low": quartiles[0], "high": quartiles[2]}],
            },
            "The loss that the attack raises, over the examples that the model gets right; the band holds the middle half. "
            "It must rise.",
        )
    name = "pgd" if seen.tested(probe="attack", attack="pgd") else "square"
    ladder = [t for t in (*LADDER, "unbounded") if seen.tested(probe="attack", attack=name, times=t)]
    if ladder:
        counts = [
            (
                len(seen.broken(probe="attack", attack=name, times=t)),
                len(seen.tested(probe="attack", attack=name, times=t)),
            )
            for t in ladder
        ]
        low, high = zip(*(wilson(k, n) for k, n in counts))
        yield Figure(
            "curve",
            "Attack success against radius",
            {
                "x_label": f"radius, as a multiple of {seen.threat}",
                "y_label": "share of examples broken",
                "x": list(range(len(ladder))),
                "x_ticks": [t if isinstance(t, str) else f"{t:g}" for t in ladder],
                "series": [{"name": name, "y": [k / n for k, n in counts], "low": list(low), "high": list(high)}],
            },
            "The share must rise with the radius and reach 100 % without a bound.",
        )
