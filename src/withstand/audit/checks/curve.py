"""Accuracy against the radius of the attack."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import Attack
from withstand.audit.check import Check, Table
from withstand.audit.measure import (
    OptionalAttack,
    attack_on,
    attack_passes,
    bounded,
    condition_of,
    confidence,
    labelled,
    predict,
    radius_text,
    run_attack,
)
from withstand.errors import bad
from withstand.protocols import Batch, Context, Figure, Findings, Row, Target
from withstand.registry import component, replace
from withstand.threats import Linf, ThreatField

SHARES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


@component("check", "curve", systems=("classic_attacks",))
class Curve(Check):
    """The security curve: accuracy against the radius, in one pass up a ladder of radii.

    An example that is broken at one radius stays broken at all larger ones, whose sets contain the point found; only those
    that still stand are attacked again. The curve never rises, by construction.

    threat: the norm, and the radius that the ladder is built around. radii: the ladder; empty takes 1/8, 1/4, 1/2, 1, 2 and
    4 times the threat's radius. attack: the search at every radius; None takes AutoAttack (standard).

    Reference: Biggio, Roli, "Wild Patterns: Ten Years After the Rise of Adversarial Machine Learning", 2018, arXiv
    1712.03141 (security evaluation curves).
    """

    threat: ThreatField = Linf(8 / 255)
    radii: tuple[float, ...] = ()
    attack: OptionalAttack = None

    title = "Security curve"

    def __post_init__(self) -> None:
        bounded(self)
        if list(self.radii) != sorted(set(self.radii)) or (
            self.radii and not 0 < self.radii[0] <= self.radii[-1] < 1e30
        ):
            raise bad(
                "radii", self.radii, "finite radii > 0 in rising order", "0, the clean accuracy, is always added."
            )

    @property
    def ladder(self) -> tuple[float, ...]:
        """The radii, without 0."""
        return self.radii or tuple(self.threat.eps * share for share in SHARES)

    @property
    def access(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({attack_on(self.threat, self.attack, "autoattack").access})

    def at(self, eps: float) -> Attack:
        """The attack at one radius."""
        return attack_on(replace(self.threat, eps=eps), self.attack, "autoattack")

    def passes(self, target: Target) -> float:
        return 1 + len(self.ladder) * (1 + attack_passes(self.at(self.ladder[0]), target))

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack", "threat", "eps"} for 0 and every radius: outcome; value = confidence, prediction and distance at the
        point that broke it, or at the last one that did not."""
        x, y, ids = labelled(shard)
        sure, guess = confidence(predict(target, x, ctx))
        distance = torch.zeros_like(sure)
        stood = guess == y
        yield from self._rows(0.0, ids, y, stood, sure, guess, distance, torch.ones_like(y))
        for eps in self.ladder:
            cost = torch.zeros_like(y)
            left = stood.nonzero().flatten()
            if len(left):
                result = run_attack(self.at(eps), target, x[left], y[left], ids[left], ctx)
                sure[left], guess[left] = confidence(predict(target, result.x_adv, ctx))
                stood[left] = ~result.success & (guess[left] == y[left])
                distance[left] = result.distance.to(distance)
                cost[left] = result.forwards + result.backwards + 1
            yield from self._rows(eps, ids, y, stood, sure, guess, distance, cost)

    def _rows(self, eps: float, *columns: Tensor) -> Iterable[Row]:
        condition = {**condition_of(self.at(eps), self.threat), "eps": eps}
        for id_, label, outcome, sure, guess, distance, spent in zip(*(c.tolist() for c in columns)):
            yield Row("image", id_, condition, outcome, sure, label, guess, distance, spent)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        named = condition_of(self.at(self.ladder[0]), self.threat)
        radii = (0.0, *self.ladder)
        found = [rows.share("curve_accuracy", **{**named, "eps": eps}) for eps in radii]
        norm = named["threat"].capitalize()
        data = {
            "x_label": f"{norm} radius of the change",
            "y_label": "accuracy",
            "x": list(radii),
            "x_ticks": [radius_text(eps) for eps in radii],
            "series": [
                {
                    "name": named["attack"],
                    "y": [m.value for m in found],
                    "low": [m.low for m in found],
                    "high": [m.high for m in found],
                }
            ],
        }
        caption = (
            f"Share of all examples that stay right when someone may change each by so much ({norm}), searched with "
            f"{named['attack']}; 95 % intervals (Wilson). An example once broken stays broken at larger radii."
        )
        return Findings(found[1:], [Figure("curve", f"Security curve, {norm}", data, caption)])
