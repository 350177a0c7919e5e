"""Does an attack that a second model guides find what plain gradients miss? A diagnosis of masked gradients."""

from collections.abc import Iterable, Mapping
from typing import Any

from withstand.attacks.engine import Attack
from withstand.attacks.gpga import GPGA
from withstand.attacks.pgd import PGD
from withstand.audit.check import Check, Table
from withstand.audit.measure import attack_passes, labelled, predict, radius_text, run_attack, threat_text
from withstand.errors import bad
from withstand.metrics import paired_difference
from withstand.objectives import Margin
from withstand.protocols import Batch, Context, Figure, Findings, Flag, Metric, Need, Row, Target
from withstand.registry import component
from withstand.threats import Linf, ThreatField

LEAST = 0.01
"""A difference of robust accuracy that counts."""


@component("check", "guided", systems=("gpga",))
class Guided(Check):
    """Robust accuracy under a guided attack beside plain ones: masked gradients show as a gap.

    Needs a second classifier as "guide", trained without the suspected component: best adversarially with hard labels, of
    another seed or architecture, and never on the audited examples. All attacks start at the clean point, but for the
    restarts. Masking score: robust accuracy under PGD-50 on the cross-entropy minus that under G-PGA-10, which costs less.

    Flags: the score's interval lies above zero and it is a point or more; examples made on the guide alone beat PGD-50 on
    the model; the guided attack's result hinges on the length of its step.

    Reference: reconstructed from the abstract of Naseer et al., "Guidance Through Surrogate: Towards a Generic Diagnostic
    Attack", 2022, arXiv 2212.14875; thresholds are ours.
    """

    threat: ThreatField = Linf(8 / 255)

    title = "Guided attack"
    access = frozenset({"gradients"})
    needs = (Need("guide", "model"),)

    def __post_init__(self) -> None:
        if not isinstance(self.threat.eps, float):
            raise bad("threat", repr(self.threat), "a threat with one radius for all examples, e.g. linf(8/255)")

    def attacks(self, guide: Any) -> dict[str, Attack]:
        """The attacks by the names of their rows; "transfer" runs on the guide."""
        t = self.threat
        clean: dict[str, Any] = {"random_start": False}
        return {
            "pgd_ce_10": PGD(t, steps=10, step=0.25, **clean),
            "pgd_ce_50": PGD(t, steps=50, step=0.1, **clean),
            "cw_pgd_50": PGD(t, steps=50, step=0.1, objective=Margin(), **clean),
            "pgd_ce_10x10": PGD(t, steps=10, step=0.25, restarts=10),
            "transfer": PGD(t, steps=10, step=0.25, keep="last", active=False, **clean),
            "gpga_10": GPGA(t, guide),
            "gpga_10_long": GPGA(t, guide, step=0.5),
        }

    def passes(self, target: Target) -> float:
        plain = self.attacks(None)
        return 2 + sum(attack_passes(attack, target) for attack in plain.values()) + 10

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack": name}: outcome, distance of the point."""
        x, y, ids = labelled(shard)
        guide = given["guide"]
        if guide.fingerprint() == target.fingerprint():
            raise bad(
                "guide", f"{guide.name}, the audited model itself", "another model", "It would show no other way."
            )
        right = predict(target, x, ctx).argmax(1) == y
        for name, attack in self.attacks(guide).items():
            found = run_attack(attack, guide if name == "transfer" else target, x, y, ids, ctx)
            guess = predict(target, found.x_adv, ctx).argmax(1)
            stood = right & (guess == y)
            columns = (ids, stood, y, guess, found.distance, found.forwards + found.backwards)
            for id_, outcome, label, said, distance, cost in zip(*(c.tolist() for c in columns)):
                yield Row("image", id_, {"attack": name}, outcome, None, label, said, distance, cost)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        at: dict[str, Any] = {"threat": self.threat.component_name, "eps": self.threat.eps}  # type: ignore[attr-defined]
        found = Findings()
        stood = {name: rows.where(attack=name).outcome for name in self.attacks(None)}
        for name in stood:
            metric = rows.share("guided_accuracy", attack=name)
            metric.condition |= at
            found.metrics.append(metric)
        gap, low, high, _ = paired_difference(stood["gpga_10"], stood["pgd_ce_50"])
        found.metrics.append(
            Metric(
                "masking_score",
                gap,
                low,
                high,
                "Agresti-Min",
                len(rows.where(attack="pgd_ce_50")),
                better="",
                condition=at,
            )
        )
        listed = [[name, f"{share.mean():.1%}"] for name, share in stood.items()]
        said = threat_text(at["threat"], at["eps"])
        caption = "A guided attack of ten steps should not beat fifty plain ones; where it does, gradients are masked."
        found.figures.append(
            Figure("table", f"Right under {said}", {"columns": ["attack", "still right"], "rows": listed}, caption)
        )
        found.flags.append(self._flag(stood, gap, low))
        return found

    def _flag(self, stood: dict[str, Any], gap: float, low: float) -> Flag:
        share = {name: float(outcome.mean()) for name, outcome in stood.items()}
        reasons = []
        if low > 0 and gap >= LEAST:
            reasons.append(
                f"ten guided steps leave {share['gpga_10']:.1%} standing, fifty plain ones {share['pgd_ce_50']:.1%}"
            )
        beaten, _, most, _ = paired_difference(stood["pgd_ce_50"], stood["transfer"])
        if most < 0 and beaten <= -LEAST:
            reasons.append(
                f"examples made on the guide alone leave {share['transfer']:.1%}, fewer than PGD on the model itself"
            )
        steps, least, _, _ = paired_difference(stood["gpga_10_long"], stood["gpga_10"])
        if least > 0 and steps >= LEAST:
            reasons.append(f"twice the step breaks {steps:.1%} more")
        if not reasons:
            said = f"a guide finds no more than plain gradients do, at {radius_text(float(self.threat.eps))}"  # type: ignore[arg-type]
            return Flag("guided_attack", "pass", said, evidence=share)
        advice = "Gradients are probably masked: believe AutoAttack or the guided attack, not PGD."
        return Flag("guided_attack", "warn", "; ".join(reasons), advice, share)
