"""Does the model know what it does not know? Detectors of unfamiliar inputs, scored against another data set."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.audit.check import Check, Table
from withstand.audit.separation import Statistic, separation
from withstand.detection.ood import KNN, MSP, Bank, Energy, MaxLogit
from withstand.errors import bad
from withstand.metrics import aupr, auroc, fpr_at_tpr, roc
from withstand.protocols import Batch, Context, Dataset, Figure, Findings, Metric, Need, Row, Space, Target
from withstand.registry import component

_BLOCK = 256
_NAMES = {"msp": "MSP", "max_logit": "MaxLogit", "energy": "Energy", "knn": "kNN"}


@component("check", "unfamiliar", systems=("ood_human_centric",))
class Unfamiliar(Check):
    """How well MSP, MaxLogit, Energy and kNN tell the audited data from another set: AUROC, AUPR, FPR95.

    Needs the other set as "ood". Its images are made to fit the model's input: grey is repeated to three channels, colour
    becomes luma (0.299 R + 0.587 G + 0.114 B) for one, and they are resized to the input's height and width (bilinear with
    antialiasing). kNN is fitted on examples that are never scored: the data set given as "train", or, without it, every
    second example of the audited data (those at odd positions); the others are scored. It is left out for models that show
    no features.

    AUROC, AUPR: unfamiliar examples are the positives; AUPR also with the familiar ones as positives. FPR95: the share of
    unfamiliar examples taken for familiar when the threshold keeps 95 % of the familiar ones. Beside them human_auroc and
    human_fpr95, for labelled data: a prediction ought to be accepted if it is right, and rejected otherwise, so that
    misclassified familiar examples count with the unfamiliar ones.

    k: which neighbour counts for kNN. fitted: at most so many examples are held to compare with.

    References: as the detectors state; Yang, Zhou, Li, Liu, "Generalized Out-of-Distribution Detection: A Survey", 2021,
    arXiv 2110.11334.
    """

    k: int = 10
    fitted: int = 5000

    title = "Unfamiliar inputs"
    access = frozenset({"scores"})
    needs = (Need("ood", "data"), Need("train", "data", optional=True))

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.fitted:
            raise bad("k", self.k, f"a whole number from 1 to fitted = {self.fitted}")

    def passes(self, target: Target) -> float:
        return (
            4.0  # of an example: its score, one to find the last layer, and the fit, on at most as many as are scored
        )

    def examples_of(self, data: Dataset, given: Mapping[str, Any]) -> Dataset:
        """The scored part of the audited data, and the other set."""
        if "ood" not in given:
            return data
        familiar = range(0, len(data), 1 if "train" in given else 2)
        return Joined(data, familiar, given["ood"])

    def prepare(
        self, target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context
    ) -> dict[str, Tensor] | None:
        if "features" not in target.access:
            return None
        source = given.get("train", data)
        positions = np.arange(len(source)) if "train" in given else np.arange(1, len(source), 2)
        if len(positions) > self.fitted:
            positions = positions[np.linspace(0, len(positions) - 1, self.fitted).round().astype(int)]
        shape = _shape(data)
        blocks = [positions[i : i + _BLOCK].tolist() for i in range(0, len(positions), _BLOCK)]
        ctx.spend(forwards=len(positions) + len(blocks))
        return Bank(target, [KNN(self.k)]).fit(fit_input(source.batch(b).x, shape).to(ctx.device) for b in blocks)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"detector": name}: value = the score, higher = more suspicious. Units "image" (familiar) and "unfamiliar"."""
        assert shard.ids is not None
        bank = Bank(target, [MSP(), MaxLogit(), Energy(), *([KNN(self.k)] if artefact else [])])
        block = ctx.block or _BLOCK
        parts, logits = zip(*[bank.judge(x, artefact or {}) for x in shard.x.split(block)])
        ctx.spend(forwards=len(shard) + len(parts))
        said, labels = (
            torch.cat(logits).argmax(1).tolist(),
            [None] * len(shard) if shard.y is None else shard.y.tolist(),
        )
        units = ["unfamiliar" if other else "image" for other in shard.extra["unfamiliar"].tolist()]
        for name in bank.detectors:
            scores = torch.cat([p[name] for p in parts]).tolist()
            for unit, id_, score, y, guess in zip(units, shard.ids.tolist(), scores, labels, said):
                yield Row(unit, id_, {"detector": name}, None, score, y, guess, cost=1)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        found = Findings()
        grid = np.linspace(0, 1, 51)
        curves = []
        for condition in rows.conditions():
            part, name = rows.where(**condition), condition["detector"]
            positive = part.column("unit") == "unfamiliar"
            if positive.all() or not positive.any():
                continue  # a shard with one kind alone says nothing yet
            found.metrics += _metrics(part.value, positive, condition)
            reject = positive | (part.column("label") != part.column("prediction"))
            if ctx.classes and not reject.all():
                found.metrics += _human(part.value, reject, condition)
            false, true = roc(part.value, positive)
            curves.append({"name": _NAMES[name], "y": np.interp(grid, false, true).tolist()})
            if name == "msp":
                found.figures.append(_histogram(1 - part.value, positive))
        if curves:
            data = {
                "x_label": "share of familiar inputs flagged",
                "y_label": "share of unfamiliar inputs flagged",
                "x": grid.tolist(),
                "series": curves,
            }
            caption = "The higher the curve, the better; a detector that guesses lies on the diagonal."
            found.figures.insert(0, Figure("curve", "Finding unfamiliar inputs (ROC)", data, caption))
        return found


def fit_input(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Images [N, C, H, W] in [0, 1] with the channels, height and width of `shape`: see `Unfamiliar`.

    Raises: BadInput for anything that is not an image with 1 or 3 channels.
    """
    if x.dim() != 4 or len(shape) != 3 or x.shape[1] not in (1, 3) or shape[0] not in (1, 3):
        raise bad("ood", f"shape {list(x.shape[1:])}", f"images with 1 or 3 channels, for a model of {list(shape)}")
    if x.shape[1] == 1 and shape[0] == 3:
        x = x.expand(-1, 3, -1, -1)
    elif x.shape[1] == 3 and shape[0] == 1:
        x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if tuple(x.shape[2:]) != tuple(shape[1:]):
        x = F.interpolate(x, size=tuple(shape[1:]), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return x


@dataclass
class Joined:
    """Some familiar examples, then all unfamiliar ones, made to fit the familiar ones' shape.

    Batches say in extra["unfamiliar"], bool [N], which is which; labels of unfamiliar examples are -1.
    """

    familiar: Dataset
    positions: range
    unfamiliar: Dataset

    @property
    def name(self) -> str:
        return f"{self.familiar.name} and {self.unfamiliar.name}"

    @property
    def space(self) -> Space:
        return self.familiar.space

    @property
    def classes(self) -> tuple[str, ...]:
        return self.familiar.classes

    @property
    def labels(self) -> np.ndarray:
        """0 familiar, 1 unfamiliar: a part of the examples holds its share of both."""
        return np.repeat([0, 1], [len(self.positions), len(self.unfamiliar)])

    def __len__(self) -> int:
        return len(self.positions) + len(self.unfamiliar)

    def batch(self, positions: Sequence[int]) -> Batch:
        at, known = np.asarray(positions, dtype=int), len(self.positions)
        parts = []
        for other, chosen in ((False, at[at < known]), (True, at[at >= known])):
            if len(chosen):
                source = self.unfamiliar if other else self.familiar
                made = source.batch((chosen - known if other else np.asarray(self.positions)[chosen]).tolist())
                x = fit_input(made.x, _shape(self.familiar)) if other else made.x
                y = torch.full((len(x),), -1) if other or made.y is None else made.y
                parts.append(Batch(x, y, made.ids, extra={"unfamiliar": torch.full((len(x),), other)}))
        order = np.argsort(np.argsort(at >= known, kind="stable"), kind="stable")  # back to the order asked for
        return Batch.cat(parts).index(torch.from_numpy(order))

    def fingerprint(self) -> str:
        text = f"{self.familiar.fingerprint()} {self.positions} {self.unfamiliar.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _shape(data: Dataset) -> tuple[int, ...]:
    shape = data.space.shape
    if shape is None or any(side is None for side in shape):
        return tuple(data.batch([0]).x.shape[1:])
    return tuple(int(side) for side in shape if side is not None)


def _metrics(scores: np.ndarray, positive: np.ndarray, condition: dict[str, Any]) -> list[Metric]:
    """All figures of one detector; bootstrap intervals, familiar and unfamiliar examples drawn apart."""
    return separation(
        scores,
        positive,
        [
            ("auroc", auroc, "higher", condition),
            ("aupr", aupr, "higher", {**condition, "positive": "unfamiliar"}),
            ("aupr", lambda s, p, w=None: aupr(-s, ~p, w), "higher", {**condition, "positive": "familiar"}),
            ("fpr95", lambda s, p, w=None: fpr_at_tpr(-s, ~p, 0.95, w), "lower", condition),
        ],
    )


def _human(scores: np.ndarray, reject: np.ndarray, condition: dict[str, Any]) -> list[Metric]:
    """The same where predictions that are wrong ought to be rejected, and no others."""
    passed: Statistic = ("human_fpr95", lambda s, p, w=None: fpr_at_tpr(-s, ~p, 0.95, w), "lower", condition)
    return separation(scores, reject, [("human_auroc", auroc, "higher", condition), passed])


def _histogram(confidence: np.ndarray, positive: np.ndarray) -> Figure:
    edges = np.linspace(0, 1, 11)
    series = []
    for said, chosen in (("familiar", ~positive), ("unfamiliar", positive)):
        counts, _ = np.histogram(np.clip(confidence[chosen], 0, 1), edges)
        series.append({"name": said, "values": (counts / chosen.sum()).tolist()})
    data = {
        "labels": [f"{a:.1f}-{b:.1f}" for a, b in pairwise(edges)],
        "y_label": "share of the set",
        "series": series,
    }
    caption = (
        "The model's confidence in its prediction (largest softmax probability) on familiar and unfamiliar inputs."
    )
    return Figure("bars", "How sure the model is", data, caption)
