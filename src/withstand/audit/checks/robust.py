"""Accuracy under attack at one threat."""

from collections.abc import Iterable, Mapping
from typing import Any

from withstand.attacks.engine import Attack
from withstand.audit.check import Check, Table
from withstand.audit.gallery import gallery, keep_worst
from withstand.audit.measure import (
    OptionalAttack,
    attack_on,
    attack_passes,
    bounded,
    condition_of,
    confidence,
    labelled,
    predict,
    run_attack,
    threat_text,
)
from withstand.protocols import Batch, Context, Figure, Findings, Row, Target
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("check", "robust", systems=("classic_attacks", "robustness_benchmarks"))
class Robust(Check):
    """Robust accuracy: the share of all examples that stay right whatever the attack finds.

    An example counts as robust if the model is right on it and on the point that the attack returns; those that are wrong
    from the start are not.

    threat: what the adversary may do. attack: the search, on that threat; None takes AutoAttack (standard).

    References: Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv 1902.06705; Croce, Hein, "Reliable
    evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", 2020, arXiv 2003.01690.
    """

    threat: ThreatField = Linf(8 / 255)
    attack: OptionalAttack = None

    title = "Under attack"

    def __post_init__(self) -> None:
        bounded(self)

    @property
    def chosen(self) -> Attack:
        """The attack that runs."""
        return attack_on(self.threat, self.attack, "autoattack")

    @property
    def access(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({self.chosen.access})

    def passes(self, target: Target) -> float:
        return 1 + attack_passes(self.chosen, target)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack", "threat", "eps"}: outcome, value = confidence at the point found, distance = of that point, 0 where
        the clean example was wrong; {"part": name}, for AutoAttack: value = 1 where still right after that attack."""
        x, y, ids = labelled(shard)
        attack = self.chosen
        before = confidence(predict(target, x, ctx))
        result = run_attack(attack, target, x, y, ids, ctx)
        after = confidence(predict(target, result.x_adv, ctx))
        stood = ~result.success & (before[1] == y) & (after[1] == y)
        keep_worst(ctx.folder, x, result.x_adv, y, ids, before, after, result.distance, ~stood & (before[1] == y))
        condition = condition_of(attack, self.threat)
        cost = result.forwards + result.backwards + 2
        columns = [c.tolist() for c in (ids, stood, after[0], y, after[1], result.distance, cost)]
        for id_, outcome, sure, label, guess, distance, spent in zip(*columns):
            yield Row("image", id_, condition, outcome, sure, label, guess, distance, spent)
        by = result.notes.get("broken_by")
        if by is None:
            return
        for position, part in enumerate(result.notes.get("attacks", ())):
            standing = ((by < 0) | (by > position)).double()
            for id_, label, value in zip(ids.tolist(), y.tolist(), standing.tolist()):
                yield Row("image", id_, {"part": part}, None, value, label)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        condition = condition_of(self.chosen, self.threat)
        found = Findings([rows.share("robust_accuracy", **condition)])
        said = threat_text(condition["threat"], condition["eps"])
        parts = {c["part"]: rows.where(**c).value.mean() for c in rows.conditions() if "part" in c}
        if parts:
            found.figures.append(self._parts(parts))
        if shown := gallery(ctx, condition, f"Broken under {said}"):
            found.figures.append(shown)
        return found

    def _parts(self, standing: dict[str, float]) -> Figure:
        listed, before = [], 1.0
        for name, share in standing.items():
            listed.append([name, f"{before - share:.1%}", f"{share:.1%}"])
            before = share
        caption = "Each attack runs on the examples that the ones before it left standing; clean: wrong from the start."
        data = {"columns": ["attack", "broken by it", "still right"], "rows": listed}
        return Figure("table", "What broke them", data, caption)
