"""Adversarial examples made on another model."""

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
from withstand.errors import bad
from withstand.metrics import wilson
from withstand.protocols import Batch, Context, Findings, Metric, Need, Row, Target
from withstand.registry import component, replace
from withstand.threats import Linf, ThreatField


@component("check", "transfer", systems=("classic_attacks", "transfer_baselines"))
class Transfer(Check):
    """Accuracy on adversarial examples that were made on a second model, without asking this one.

    The attack sees the model given as "surrogate" only; its last iterates are judged on the audited model. An example
    counts as withstood if the model is right on it clean and attacked.

    threat: what the adversary may do. attack: a gradient attack on the surrogate, run to its last iterate on all examples;
    None takes PGD with momentum (MI-FGSM: 10 steps of 1/10 of the radius, no random start).

    Reference: Dong et al., "Boosting Adversarial Attacks with Momentum", 2018, arXiv 1710.06081.
    """

    threat: ThreatField = Linf(8 / 255)
    attack: OptionalAttack = None

    title = "Transferred attacks"
    access = frozenset({"decision"})
    needs = (Need("surrogate", "model"),)

    def __post_init__(self) -> None:
        bounded(self)

    @property
    def chosen(self) -> Attack:
        """The attack that runs on the surrogate."""
        default = "pgd(steps=10, step=0.1, random_start=False, shapings=(momentum(1.0),))"
        return replace(attack_on(self.threat, self.attack, default), keep="last", active=False)

    def passes(self, target: Target) -> float:
        return 2 + attack_passes(self.chosen, target)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack", "threat", "eps"}: outcome, value = confidence at the transferred point, distance = of that point;
        {"of": "surrogate"}: value = 1 where the surrogate itself was fooled."""
        x, y, ids = labelled(shard)
        surrogate, attack = given["surrogate"], self.chosen
        if surrogate.space.classes and target.space.classes and surrogate.space.classes != target.space.classes:
            raise bad(
                "surrogate",
                f"a model with {surrogate.space.classes} classes",
                f"one with the {target.space.classes} classes of the audited model",
            )
        result = run_attack(attack, surrogate, x, y, ids, ctx)
        fooled = predict(surrogate, result.x_adv, ctx).argmax(1) != y
        before, after = (confidence(predict(target, z, ctx)) for z in (x, result.x_adv))
        stood = (before[1] == y) & (after[1] == y)
        keep_worst(ctx.folder, x, result.x_adv, y, ids, before, after, result.distance, ~stood & (before[1] == y))
        condition = condition_of(attack, self.threat)
        columns = (ids, stood, after[0], y, after[1], result.distance, fooled.double())
        for id_, outcome, sure, label, guess, distance, made in zip(*(c.tolist() for c in columns)):
            yield Row("image", id_, condition, outcome, sure, label, guess, distance, 2)
            yield Row("image", id_, {"of": "surrogate"}, None, made, label)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        condition = condition_of(self.chosen, self.threat)
        found = Findings([rows.share("transfer_accuracy", **condition)])
        made = rows.where(of="surrogate").value
        low, high = wilson(int(made.sum()), len(made))
        share = float(made.mean())
        found.metrics.append(
            Metric("surrogate_fooled", share, low, high, "wilson", len(made), better="", condition=condition)
        )
        if shown := gallery(ctx, condition, f"Transferred, {threat_text(condition['threat'], condition['eps'])}"):
            found.figures.append(shown)
        return found
