"""Do detectors find adversarial examples, and do they still when the attacker knows them?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import PlainValidator
from torch import Tensor

from withstand.attacks.engine import Attack, AttackField
from withstand.attacks.fgsm import FGSM
from withstand.attacks.noise import Noise
from withstand.attacks.pgd import PGD
from withstand.audit.check import Check, Table
from withstand.audit.measure import attack_passes, labelled, predict, radius_text, run_attack
from withstand.audit.separation import separation
from withstand.data.derived import Part
from withstand.detection.adversarial import LID, DropoutVariance, Evading, KernelDensity, Mahalanobis, Odds
from withstand.detection.adversarial.dropout_variance import dropouts
from withstand.detection.ood import Bank
from withstand.errors import bad
from withstand.metrics import auroc, fpr_at_tpr, roc, wilson
from withstand.objectives import Margin
from withstand.protocols import Batch, Context, Dataset, Figure, Findings, Flag, Metric, Need, Row, Target
from withstand.random import derive
from withstand.registry import coerce, component, is_component, replace
from withstand.threats import Linf, ThreatField, per_row

_BLOCK = 256
_FALSE = 0.05
"""The share of clean examples that may be flagged."""
KNOWING = "knows the detector"


def _detector(value: Any) -> Any:
    value = coerce("detector")(value)
    if not is_component(value) or value.component_kind != "detector":
        raise bad("detectors", repr(value), "detectors or their texts, e.g. ('lid(k=10)', 'mahalanobis')")
    return value


@component("check", "detection", systems=("classic_attacks",))
class Detection(Check):
    """How well detectors find adversarial examples, of attacks that do not know them and of one that does.

    The attacks run on the model; a detector scores clean examples, those of them that an attack turned wrong, and random
    noise of the same size. A threshold that flags 5 % of trusted examples decides. Then each detector is attacked by name:
    PGD on `Evading`, an objective that also lowers the detector's score, once for each weight of it; of these points and
    those of the other attacks, the misclassified one with the lowest score counts. That number is the one to go by.

    AUROC, FPR95 (clean examples flagged where 95 % of the attacks are): all clean examples against the successful
    adversarial ones. "Wrong and not flagged": of the examples first right, those for which the attack finds a point that
    passes both. Examples that the model gets wrong from the start count as clean ones only.

    Detectors are fitted on examples that are never scored: the data set given as "train", or else every second example of
    the audited data (those at odd positions). Of these a quarter sets the thresholds.

    threat: what the adversary may do. attacks: on that threat; empty takes PGD on the cross-entropy and on the margin (20
    steps to the end, as in the detectors' papers; `pgd()` stops at the first wrong class), and FGSM. detectors: empty takes
    kernel_density, lid, mahalanobis, odds, and dropout_variance where the model has dropout. steps, weights: of the attack
    that knows the detector. supervised: LID and Mahalanobis weigh their layers by a logistic regression, as in their papers:
    half of the fit part is fitted, a quarter is attacked by the first attack to learn from (clean and noisy examples being
    the trusted ones). fitted: at most so many examples make the fit part.

    References: as the detectors state; Carlini, Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing Ten
    Detection Methods", 2017, arXiv 1705.07263; Tramer, Carlini, Brendel, Madry, "On Adaptive Attacks to Adversarial Example
    Defenses", 2020, arXiv 2002.08347.
    """

    threat: ThreatField = Linf(8 / 255)
    attacks: tuple[AttackField, ...] = ()
    detectors: tuple[Annotated[Any, PlainValidator(_detector)], ...] = ()
    steps: int = 40
    weights: tuple[float, ...] = (0.0, 0.1, 1.0)
    supervised: bool = False
    fitted: int = 5000

    title = "Detecting attacks"
    access = frozenset({"gradients", "features"})
    needs = (Need("train", "data", optional=True),)

    def __post_init__(self) -> None:
        if not isinstance(self.threat.eps, float):
            raise bad("threat", repr(self.threat), "a threat with one radius for all examples, e.g. linf(8/255)")
        for attack in (*self.attacks, PGD(steps=self.steps)):
            replace(attack, threat=self.threat)
        if not self.weights or min(self.weights) < 0 or not all(np.isfinite(self.weights)):
            raise bad("weights", self.weights, "finite numbers >= 0, at least one")
        if self.fitted < 8:
            raise bad("fitted", self.fitted, "a whole number >= 8")

    @property
    def chosen(self) -> dict[str, Attack]:
        """The attacks that do not know the detectors, by the names that rows and metrics have for them."""
        named: dict[str, Attack] = {}
        for attack in self.attacks or _default():
            objective = getattr(getattr(attack, "objective", None), "component_name", "cross_entropy")
            name = attack.component_name + ("" if objective == "cross_entropy" else f" {objective}")  # type: ignore[attr-defined]
            number = sum(n.split(" #")[0] == name for n in named) + 1
            named[name if number == 1 else f"{name} #{number}"] = replace(attack, threat=self.threat)
        return named

    def bank(self, target: Target, seed: int) -> Bank:
        """The detectors, their noise drawn from the run's seed. Raises BadInput for one that the model does not suit."""
        chosen = list(self.detectors) or [KernelDensity(), LID(), Mahalanobis(), Odds()]
        if not self.detectors and target.module is not None and dropouts(target.module):
            chosen.append(DropoutVariance())
        return Bank(target, chosen, derive(seed, "detectors"))

    def passes(self, target: Target) -> float:
        bank, plain = self.bank(target, 0), self.chosen
        each = 1.0 + sum(_own_passes(d) for d in bank.detectors.values())
        points = len(plain) + 2
        knowing = sum(
            len(self.weights) * (attack_passes(PGD(steps=self.steps), target) + 2) * (1 + _own_passes(d))
            + points * (1 + _own_passes(d))
            for d in bank.detectors.values()
        )
        attacked = sum(attack_passes(a, target) for a in plain.values())
        return 6 + points * (each + 1) + 3 * each + attacked * (2 if self.supervised else 1) + knowing

    def examples_of(self, data: Dataset, given: Mapping[str, Any]) -> Dataset:
        """The scored part of the audited data: all, or those at even positions where there is no "train"."""
        return data if "train" in given else Part(data, range(0, len(data), 2))

    def prepare(self, target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context) -> dict[str, Tensor]:
        bank, source = self.bank(target, ctx.seed), given.get("train", data)
        if source is not data and source.fingerprint() == data.fingerprint():
            raise bad("train", f"{source.name}, the audited data", "other examples", 'Leave "train" out to use a half.')
        positions = np.arange(len(source)) if "train" in given else np.arange(1, len(source), 2)
        if len(positions) > self.fitted:
            positions = positions[np.linspace(0, len(positions) - 1, self.fitted).round().astype(int)]
        if len(positions) < 8:
            raise bad("data", f"{len(positions)} examples to fit detectors on", "at least 8", 'Give "train".')
        quarter = np.arange(len(positions)) % 4
        learn = positions[quarter == 2] if self.supervised else positions[:0]
        fit, hold = positions[(quarter < 2) | ((quarter == 2) & (not self.supervised))], positions[quarter == 3]
        labels = torch.cat([labelled(b)[1] for b in _batches(source, fit, ctx)])
        made = bank.fit((b.x for b in _batches(source, fit, ctx)), labels)
        if self.supervised:
            made = self._taught(bank, target, list(_batches(source, learn, ctx)), made, ctx)
        parts = [bank.score(b.x, made, b.ids) for b in _batches(source, hold, ctx)]
        ctx.spend(forwards=1 + (len(fit) + len(hold)) * _all_passes(bank))
        for name in bank.detectors:
            clean = torch.cat([p[name] for p in parts])
            limits = clean.mean(), clean.std(correction=0).clamp_min(1e-12), clean.quantile(1 - _FALSE)
            made[f"{name}.limits"] = torch.stack(limits)
        return made

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"detector", "attack"}: value = the detector's score at the attack's point, prediction = the model's class there.

        attack "clean" (outcome: not flagged), "noise" (likewise), the attacks' names and "knows the detector" (outcome: the
        model is right or the point is flagged)."""
        x, y, ids = labelled(shard)
        bank = self.bank(target, ctx.seed)
        points, costs = {"clean": x, "noise": self._noise(target, x, y, ids, ctx)}, {}
        for name, attack in self.chosen.items():
            found = run_attack(attack, target, x, y, ids, ctx)
            points[name], costs[name] = found.x_adv, found.forwards + found.backwards
        seen = {name: _Seen(bank, target, z, ids, artefact, ctx) for name, z in points.items()}
        for detector in bank.detectors:
            mean, spread, limit = artefact[f"{detector}.limits"].tolist()
            best = _Best(x, y)
            for name, look in seen.items():
                score = look.scores[detector]
                if name in self.chosen:
                    best.offer(points[name], look.prediction, score)
                cost = costs.get(name, torch.zeros_like(ids)) + 1
                yield from self._told(detector, name, x, points[name], y, ids, look.prediction, score, limit, cost)
            cost = torch.zeros_like(ids)
            for weight in self.weights:
                objective = Evading(bank, detector, artefact, x[:1], weight, mean, spread)
                attack = PGD(self.threat, steps=self.steps, objective=objective)
                found = run_attack(attack, target, x, y, ids, ctx)
                extra = _own_passes(bank.detectors[detector])
                ctx.spend(int(found.forwards.sum()) * extra, int(found.backwards.sum()) * extra)
                look = _Seen(bank, target, found.x_adv, ids, artefact, ctx, (detector,))
                best.offer(found.x_adv, look.prediction, look.scores[detector])
                cost = cost + (found.forwards + found.backwards) * (1 + extra) + 1
            yield from self._told(detector, KNOWING, x, best.z, y, ids, best.prediction, best.score, limit, cost)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        found, curves, listed = Findings(), {False: [], True: []}, []
        size = radius_text(self.threat.eps)
        for detector in dict.fromkeys(c["detector"] for c in rows.conditions()):
            clean = _ordered(rows.where(detector=detector, attack="clean"))
            right = clean.prediction == clean.label
            noise = _ordered(rows.where(detector=detector, attack="noise"))
            alarms = {"false_alarms": clean, "noise_alarms": noise}
            alarm = {n: _share(n, ~t.outcome, "lower", {"detector": detector}) for n, t in alarms.items()}
            found.metrics += alarm.values()
            missed: dict[str, tuple[int, int]] = {}
            for attack in dict.fromkeys(c["attack"] for c in rows.conditions()):
                if attack in ("clean", "noise"):
                    continue
                part = _ordered(rows.where(detector=detector, attack=attack))
                condition = next(c for c in part.conditions())
                won = right & (part.prediction != part.label)
                if right.any():
                    share = _share("undetected_success", (won & ~part.outcome)[right], "lower", condition)
                    found.metrics.append(share)
                missed[attack] = int((won & ~part.outcome).sum()), int(won.sum())
                if not won.any():
                    continue
                found.metrics.append(_share("detection_rate", part.outcome[won], "higher", condition))
                scores = np.r_[clean.value, part.value[won]]
                positive = np.r_[np.zeros(len(clean), bool), np.ones(int(won.sum()), bool)]
                metrics = separation(
                    scores,
                    positive,
                    [
                        ("detection_auroc", auroc, "higher", condition),
                        ("detection_fpr95", lambda s, p, w=None: fpr_at_tpr(s, p, 0.95, w), "lower", condition),
                    ],
                )
                found.metrics += metrics
                if attack in (next(iter(self.chosen)), KNOWING):
                    curves[attack == KNOWING].append((detector, *roc(scores, positive)))
                listed.append(
                    [
                        detector,
                        attack,
                        f"{metrics[0].value:.3f}",
                        f"{metrics[1].value:.1%}",
                        f"{part.outcome[won].mean():.1%}",
                        f"{(won & ~part.outcome)[right].mean():.1%}",
                    ]
                )
            found.flags += _flags(detector, missed, f"{self.threat.component_name} {size}")  # type: ignore[attr-defined]
        for knowing, series in curves.items():
            if series:
                found.figures.append(_roc(series, knowing, next(iter(self.chosen))))
        columns = ["detector", "attack", "AUROC", "FPR95", "flagged", "wrong and not flagged"]
        caption = "Flagged: of the successful adversarial examples, at a threshold that flags about 5 % of clean ones."
        found.figures.append(Figure("table", "What detectors find", {"columns": columns, "rows": listed}, caption))
        return found

    def _noise(self, target: Target, x: Tensor, y: Tensor, ids: Tensor, ctx: Context) -> Tensor:
        """One random point of the threat for each example."""
        draw = Noise(self.threat, samples=1, keep="last", active=False)
        return run_attack(draw, target, x, y, ids, ctx).x_adv

    def _taught(
        self, bank: Bank, target: Target, batches: Sequence[Batch], fitted: dict[str, Tensor], ctx: Context
    ) -> dict[str, Tensor]:
        """What the bank fitted, after learning from the first attack on examples that nothing was fitted on."""
        trusted, adversarial = [], []
        attack = next(iter(self.chosen.values()))
        for batch in batches:
            x, y, ids = labelled(batch)
            x_adv = run_attack(attack, target, x, y, ids, ctx).x_adv
            won = (predict(target, x, ctx).argmax(1) == y) & (predict(target, x_adv, ctx).argmax(1) != y)
            trusted += [x, self._noise(target, x, y, ids, ctx)]
            adversarial += [x_adv[won]] if bool(won.any()) else []
        if not adversarial:
            allowed = "an attack that turns some of the examples that the detectors learn from"
            raise bad("supervised", "no successful adversarial example", allowed, "Take a larger radius, or False.")
        ctx.spend(forwards=sum(map(len, [*trusted, *adversarial])) * _all_passes(bank))
        return bank.teach(trusted, adversarial, fitted)

    def _told(
        self, detector: str, attack: str, x: Tensor, z: Tensor, y: Tensor, ids: Tensor, prediction: Tensor, score: Tensor,
        limit: float, cost: Tensor,
    ) -> Iterator[Row]:  # fmt: skip
        condition: dict[str, Any] = {"detector": detector, "attack": attack}
        if attack != "clean":
            condition |= {"threat": self.threat.component_name, "eps": self.threat.eps}  # type: ignore[attr-defined]
        flagged = score > limit
        outcome = ~flagged if attack in ("clean", "noise") else flagged | (prediction == y)
        distance = self.threat.distance(x.double(), z.double())
        for id_, stood, value, label, guess, far, spent in zip(
            *(c.tolist() for c in (ids, outcome, score, y, prediction, distance, cost))
        ):
            yield Row("image", id_, condition, stood, value, label, guess, far, spent)


class _Seen:
    """What the model and the detectors say of points."""

    def __init__(
        self,
        bank: Bank,
        target: Target,
        z: Tensor,
        ids: Tensor,
        fitted: Mapping[str, Tensor],
        ctx: Context,
        names: Sequence[str] = (),
    ) -> None:
        self.prediction = predict(target, z, ctx).argmax(1)
        size = ctx.block or _BLOCK
        parts = [bank.score(a, fitted, b, names) for a, b in zip(z.split(size), ids.split(size))]
        self.scores = {n: torch.cat([p[n] for p in parts]) for n in parts[0]}
        own = sum(_own_passes(bank.detectors[n]) for n in names or bank.detectors)
        ctx.spend(forwards=1 + len(z) * (1 + own))


class _Best:
    """For each example the misclassified point with the lowest score; the first point offered where there is none."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.y, self.z, self.prediction = y, x, y
        self.score = torch.full(y.shape, torch.inf, dtype=torch.float64, device=y.device)

    def offer(self, z: Tensor, prediction: Tensor, score: Tensor) -> None:
        wrong, had = prediction != self.y, self.prediction != self.y
        better = (wrong & (~had | (score < self.score))) | (self.score == torch.inf)
        self.z = torch.where(per_row(better, z), z, self.z)
        self.prediction = torch.where(better, prediction, self.prediction)
        self.score = torch.where(better, score, self.score)


def _default() -> tuple[Attack, ...]:
    whole: dict[str, Any] = {"steps": 20, "keep": "last", "active": False}
    return PGD(**whole), PGD(objective=Margin(), **whole), FGSM()


def _batches(source: Dataset, positions: np.ndarray, ctx: Context) -> Iterator[Batch]:
    size = ctx.block or _BLOCK
    for start in range(0, len(positions), size):
        yield source.batch(positions[start : start + size].tolist()).to(ctx.device)


def _own_passes(detector: Any) -> int:
    """Passes of each example that a detector adds to the shared one."""
    return detector.samples if getattr(detector, "needs_input", False) else 0


def _all_passes(bank: Bank) -> int:
    return 1 + sum(map(_own_passes, bank.detectors.values()))


def _ordered(table: Table) -> Table:
    """The rows in the order of their ids."""
    return Table(table.table.sort_by("id"))


def _share(name: str, hits: np.ndarray, better: Any, condition: dict[str, Any]) -> Metric:
    low, high = wilson(int(hits.sum()), len(hits))
    return Metric(name, float(hits.mean()), low, high, "wilson", len(hits), "share", better, dict(condition))


def _flags(detector: str, missed: Mapping[str, tuple[int, int]], threat: str) -> list[Flag]:
    """Said of a detector that an attack which knows it passes for half of the examples that it turns wrong."""
    passed, turned = missed.get(KNOWING, (0, 0))
    if not turned or passed < turned / 2:
        return []
    plain = max((m for name, m in missed.items() if name != KNOWING), key=lambda m: m[0], default=(0, 0))
    return [
        Flag(
            "detector fails against an attack that knows it",
            "warn",
            f"{detector}: of the {turned} examples turned wrong within {threat}, {passed} pass unflagged once the attacker "
            f"lowers the score as well; of the attacks that do not know it, the best gets {plain[0]} past it.",
            "Do not count on this detector against an adversary: make the model itself robust, e.g. by pgd_at or trades.",
            {"passed": passed, "turned": turned, "passed by attacks that do not know it": plain[0]},
        )
    ]


def _roc(series: Sequence[tuple[str, np.ndarray, np.ndarray]], knowing: bool, attack: str) -> Figure:
    grid = np.linspace(0, 1, 51)
    data = {
        "x_label": "share of clean examples flagged",
        "y_label": "share of successful adversarial examples flagged",
        "x": grid.tolist(),
        "series": [{"name": name, "y": np.interp(grid, false, true).tolist()} for name, false, true in series],
    }
    title = "Detecting an attack that knows the detector (ROC)" if knowing else f"Detecting {attack} (ROC)"
    caption = (
        "Each detector against the attack made for it; on the diagonal it guesses, below it the attack looks cleaner than "
        "clean examples do."
        if knowing
        else "The attack does not know that there is a detector. The higher the curve, the better."
    )
    return Figure("curve", title, data, caption)
