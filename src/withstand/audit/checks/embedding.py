"""Models that embed or hash: what their searches find, clean and under attack."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
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
    labelled,
    run_attack,
    threat_text,
)
from withstand.audit.shelf import NEIGHBOURS, Shelf, fill, keep_lists, lists_figure
from withstand.errors import bad
from withstand.metrics import bootstrap, cluster_bootstrap
from withstand.models.encoder import Encoder
from withstand.protocols import Batch, Context, Dataset, Figure, Findings, Flag, Metric, Need, Row, Target
from withstand.registry import component, replace
from withstand.report.words import title
from withstand.representation.labels import Labels
from withstand.representation.metrics import code_scores, retrieval_scores
from withstand.threats import Linf, ThreatField

_CLEAN = {"attack": "clean"}
_CLASSES = 20  # classes from which on they are drawn whole: of fewer, too little is known of how classes differ
_COLLAPSED = 1e-3  # mean cosine distance of items below which all are the same to a search


@dataclass(frozen=True, kw_only=True)
class _Search(Check):
    """Queries are the audited examples; each is compared with the given gallery, or with all other audited examples."""

    access = frozenset({"gradients"})
    needs = (Need("gallery", "data", optional=True),)
    default: ClassVar[str] = ""
    value: ClassVar[str] = ""
    """The measure that tells which lists suffered most."""

    def __post_init__(self) -> None:
        bounded(self)
        if not self.ks or any(isinstance(k, bool) or k < 1 for k in self.ks):  # type: ignore[attr-defined]
            raise bad("ks", self.ks, "whole numbers >= 1, at least one")  # type: ignore[attr-defined]

    @property
    def chosen(self) -> Attack:
        """The attack that runs, but for a database that it is given."""
        return attack_on(self.threat, self.attack, self.default)  # type: ignore[attr-defined]

    def passes(self, target: Target) -> float:
        return 3 + attack_passes(self.chosen, target)

    def prepare(self, target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
        """The items with their labels; small pictures of them."""
        return fill(target, data, given, ctx, nmi=True)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack", "threat", "eps", "measure"}, "clean" among the attacks: recall_at_K as outcome (of the first K with the
        nearest item's label as prediction, the distance of the point and its passes), other measures as value; among them
        "shift" (attacked only), the cosine distance or the share of bits between clean and attacked, and "chance" (clean
        only), the share of relevant items. ("model", 0): measures of all items. Queries to which nothing is relevant have
        no rows."""
        x, y, ids = labelled(shard)
        shelf, encode = Shelf(artefact), Encoder(target)
        places = shelf.places(ids)
        clean = encode(x).cpu()
        attack = self.chosen
        if getattr(attack, "database", "none") is None and shelf.bits:
            attack = replace(attack, database=(shelf.codes(), shelf.labels))
        result = run_attack(attack, target, x, y, ids, ctx)
        attacked = encode(result.x_adv).cpu()
        ctx.spend(forwards=2 * len(x))
        labels = y.cpu()
        condition = condition_of(attack, self.threat)  # type: ignore[attr-defined]
        before = self._scores(shelf, clean, labels, places)
        after = self._scores(shelf, attacked, labels, places)
        counted = ~before[self.value].isnan()
        far, near = shelf.index.search(clean, min(NEIGHBOURS, shelf.compared), places)
        far_adv, near_adv = shelf.index.search(attacked, min(NEIGHBOURS, shelf.compared), places)
        before["chance"] = _chance(shelf, labels, places)
        nothing = torch.zeros(len(x), dtype=torch.float64)
        yield from self._rows(_CLEAN, before, counted, ids, labels, shelf, near, nothing, nothing.long() + 1)
        spent = result.forwards + result.backwards
        after["shift"] = _shift(clean, attacked, bool(shelf.bits))
        yield from self._rows(condition, after, counted, ids, labels, shelf, near_adv, result.distance, spent)
        for name, value in shelf.measures.items():
            yield Row("model", 0, {"measure": name, "items": len(shelf)}, None, value)
        facts = {"id": ids.cpu(), "label": labels, "distance": result.distance.double().cpu()}
        facts |= {"before_value": before[self.value], "after_value": after[self.value]}
        facts = {name: value[counted] for name, value in facts.items()} | {"row": counted.nonzero().flatten()}
        lists = {"before": near, "after": near_adv, "far_before": far, "far_after": far_adv}
        keep_lists(ctx.folder, x, result.x_adv, facts, lists, shelf)

    def _rows(
        self,
        condition: dict[str, Any],
        scores: dict[str, Tensor],
        counted: Tensor,
        ids: Tensor,
        labels: Tensor,
        shelf: Shelf,
        near: Tensor,
        distance: Tensor,
        cost: Tensor,
    ) -> Iterable[Row]:
        single = labels.dim() == 1
        nearest = shelf.labels[near[:, 0]] if single else None
        for place in counted.nonzero().flatten().tolist():
            own = int(labels[place]) if single else None
            said = None if nearest is None else int(nearest[place])
            first = True
            for name, values in scores.items():
                where, value = {**condition, "measure": name}, float(values[place])
                if name.startswith("recall_at_") and "radius" not in name:
                    row = Row("image", int(ids[place]), where, value > 0, None, own)
                    if first:
                        row.prediction, row.distance, row.cost = said, float(distance[place]), int(cost[place])
                    first = False
                    yield row
                else:
                    yield Row("image", int(ids[place]), where, None, value, own)

    def _scores(self, shelf: Shelf, found: Tensor, labels: Tensor, places: Tensor | None) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} defines no measures")

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        condition = condition_of(self.chosen, self.threat)  # type: ignore[attr-defined]
        found = Findings()
        drawn: dict[str, dict[str, Metric]] = {}
        for said in rows.conditions():
            name = said.pop("measure")
            if "items" in said:
                value, n = float(rows.where(measure=name, items=said["items"]).value[0]), int(said["items"])
                unit = "codes" if name == "distinct_codes" else ""
                better: Any = _BETTER.get(name, "")
                found.metrics.append(Metric(name, value, None, None, "exact", n, unit, better))
                found.flags += _collapsed(name, value, n)
                continue
            mine = rows.where(measure=name, **said)
            shown = {k: v for k, v in said.items() if said != _CLEAN}
            if name.startswith("recall_at_") and "radius" not in name:
                metric = mine.share(name)
                metric.condition = shown
            else:
                metric = _mean(name, mine, shown)
            found.metrics.append(metric)
            drawn.setdefault(said["attack"], {})[name] = metric
        said = threat_text(condition["threat"], condition.get("eps"))
        attack = condition["attack"]
        names = [name for name in drawn.get("clean", {}) if name in drawn.get(attack, {})]
        if names:
            series = [
                {
                    "name": "clean" if which == "clean" else f"{attack}, {said}",
                    "values": [drawn[which][n].value for n in names],
                    "low": [drawn[which][n].low for n in names],
                    "high": [drawn[which][n].high for n in names],
                }
                for which in ("clean", attack)
            ]
            labels = [_LABELS.get(n, title(n)) for n in names]
            caption = f"What searches find, clean and once {attack} has changed the query ({said}). 95 % intervals."
            data = {"labels": labels, "y_label": "mean over the queries", "series": series}
            found.figures.append(Figure("bars", f"Search under {attack}, {said}", data, caption))
        bits = 0 if self.task == "embedding" else 1
        if lists := lists_figure(ctx, condition, f"Queries and what is found, {attack}, {said}", bits):
            found.figures.append(lists)
        shift = drawn.get(attack, {}).get("shift")
        if shift is not None:
            found.flags.append(_effect(attack, shift.value))
        return found


@component("check", "embedding", systems=("mdprop",))
class EmbeddingCheck(_Search):
    """What searches by a model's embeddings find, clean and when the queries are attacked.

    Recall@K, MAP@R, R-precision (see `withstand.representation.metrics`), and of all items the density pi_ratio, the
    spectral decay rho and the NMI of k-means clusters (of 20,000 items at most). Queries are the audited examples; they are
    compared with `--given gallery=DATA`, or with each other, each without itself. The items stay clean.

    threat: what the adversary may do to a query. attack: None takes 40 steps of PGD that push the embedding away from the
    clean one. ks: the K; those beyond the items are left out.
    """

    threat: ThreatField = Linf(8 / 255)
    attack: OptionalAttack = None
    ks: tuple[int, ...] = (1, 10)

    title = "Search by embeddings"
    task = "embedding"
    default = "pgd(steps=40, objective=push_away())"
    value = "map_at_r"

    def _scores(self, shelf: Shelf, found: Tensor, labels: Tensor, places: Tensor | None) -> dict[str, Tensor]:
        ks = [k for k in self.ks if k <= shelf.compared]
        made = retrieval_scores(found, labels, shelf.index, shelf.labels, ks=ks, lone="skip", without=places)
        return {name: values for name, values in made.items() if not name.startswith("map_at_") or name == "map_at_r"}


@component("check", "hashing", systems=("cgat",))
class HashingCheck(_Search):
    """What lookups by a model's binary codes find, clean and when the queries are attacked.

    MAP over all items and of the first K (items of equal distance in their order), Recall@K, precision and recall of the
    items within a Hamming radius, and the number of distinct codes: a model that gives all the same one withstands every
    attack and finds nothing. Queries and items are as in the check `embedding`.

    threat, ks: likewise. attack: None takes the centre-guided attack, which knows codes and labels of the items. radius: of
    the lookup, in bits.
    """

    threat: ThreatField = Linf(8 / 255)
    attack: OptionalAttack = None
    ks: tuple[int, ...] = (1, 100)
    radius: int = 2

    title = "Lookup by codes"
    task = "hashing"
    default = "cga"
    value = "map"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius < 0:
            raise bad("radius", self.radius, "a number of bits >= 0")

    def _scores(self, shelf: Shelf, found: Tensor, labels: Tensor, places: Tensor | None) -> dict[str, Tensor]:
        ks = [k for k in self.ks if k <= shelf.compared]
        radius = min(self.radius, shelf.bits)
        made = code_scores(found, labels, shelf.index, shelf.labels, ks=ks, radius=radius, lone="skip", without=places)
        made.pop("map_at_1", None)  # the same as recall_at_1
        return dict(sorted(made.items(), key=lambda item: not item[0].startswith("recall_at_1")))


_BETTER = {"pi_ratio": "lower", "rho": "", "nmi": "higher", "distinct_codes": "higher"}
_LABELS = {"map": "MAP", "map_at_r": "MAP@R", "r_precision": "R-precision", "shift": "shift of the output"}


def _mean(name: str, rows: Table, condition: dict[str, Any]) -> Metric:
    """The mean of a measure; classes are drawn whole where there are enough of them, else queries."""
    values, labels = rows.value, rows.column("label").astype(float)
    known, place = np.unique(labels, return_inverse=True)
    method = "bootstrap"
    if len(known) >= _CLASSES and not np.isnan(known).any():
        sums = np.stack([np.bincount(place, values), np.bincount(place)], axis=1).astype(float)
        low, high = cluster_bootstrap(sums, lambda m: m[:, 0] / m[:, 1])
        method = "cluster bootstrap"
    else:
        low, high = bootstrap(values)
    value = float(values.mean())
    better: Any = "" if name in ("shift", "chance") else "higher"
    ends = min(low, value), max(high, value)
    return Metric(name, value, *ends, method, len(values), "share", better, condition)


def _chance(shelf: Shelf, labels: Tensor, places: Tensor | None) -> Tensor:
    """The share of the items that are relevant to each query: what a random order finds, float64 [N]."""
    asked, items = Labels.pair(labels, len(labels), shelf.labels, len(shelf))
    return asked.relevant_counts(items, places).double() / shelf.compared


def _shift(clean: Tensor, attacked: Tensor, codes: bool) -> Tensor:
    """How far the outputs moved: the share of bits that flipped, or the cosine distance, float64 [N]."""
    if codes:
        return (clean != attacked).double().mean(1)
    return (1 - (clean.double() * attacked.double()).sum(1)).clamp(0, 2)


def _effect(attack: str, shift: float) -> Flag:
    """Whether the attack moves the outputs at all."""
    name, evidence = "attack without effect", {"shift": shift}
    if shift >= 1e-6:
        return Flag(name, "pass", f"{attack} moves the outputs, by {shift:.3g} in the mean.", "", evidence)
    advice = "Read its numbers as those of no attack; look for outputs without a gradient, or give more steps."
    return Flag(name, "fail", f"{attack} changed the inputs and moved none of the outputs.", advice, evidence)


def _collapsed(name: str, value: float, n: int) -> list[Flag]:
    """Whether all items are the same to a search."""
    if name == "distinct_codes":
        said, fails = f"The {n:,} items have {value:,.0f} different codes.", value < 2
    elif name == "mean_distance_of_items":
        said, fails = f"The mean cosine distance of the {n:,} items is {value:.2g}.", value < _COLLAPSED
    else:
        return []
    advice = (
        "A collapsed model withstands every attack and finds little: train it again, with another loss or weighting."
    )
    return [Flag("collapsed", "fail" if fails else "pass", said, advice if fails else "", {name: value})]
