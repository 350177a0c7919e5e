"""Accuracy under the common corruptions."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from withstand.audit.check import Check, Table
from withstand.audit.measure import labelled, predict
from withstand.errors import bad, unknown
from withstand.metrics import cluster_bootstrap
from withstand.protocols import Batch, Context, Figure, Findings, Metric, Need, Row, Target
from withstand.registry import component

LEVELS = (1, 2, 3, 4, 5)
_CLEAN = {"corruption": "none", "severity": 0}


@component("check", "corruptions", systems=("augment_baselines", "robustness_benchmarks"))
class Corruptions(Check):
    """Accuracy under 15 common corruptions (and 4 extra ones) at 5 severities; mCE against a stated reference.

    mean accuracy: over the 15 common kinds and all severities asked for, every cell weighing the same. mCE and relative
    mCE: 100 * mean over kinds of the ratio of summed errors to those of the reference, which is the model given as
    "reference", judged on the same images; or AlexNet's published table, if asked for and the images are photographs of
    224 x 224. Without a reference there is no mCE, only the plain mean. Intervals: bootstrap over images, each drawn with
    all its versions.

    severities: of 1..5. extra: the four extra kinds too; they are shown but enter no mean. reference: "alexnet", for
    1,000-class ImageNet models, or None.

    Reference: Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    2019, arXiv 1903.12261.
    """

    severities: tuple[int, ...] = LEVELS
    extra: bool = False
    reference: Literal["alexnet"] | None = None

    title = "Common corruptions"
    access = frozenset({"decision"})
    needs = (Need("reference", "model", optional=True),)

    def __post_init__(self) -> None:
        if not self.severities or list(self.severities) != sorted(set(self.severities) & set(LEVELS)):
            raise bad("severities", self.severities, "some of 1, 2, 3, 4, 5 in rising order")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that run."""
        from withstand.corruptions import corruption_names

        return tuple(corruption_names("all" if self.extra else "common"))

    def passes(self, target: Target) -> float:
        return 1.0 + len(self.kinds) * len(self.severities)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"corruption", "severity"}: outcome = right; {..., "of": "reference"}: value = 1 where the reference is right.
        Corruption "none" at severity 0 is the clean image."""
        from withstand.corruptions import corrupt, reported_name

        x, y, ids = labelled(shard)
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise bad("data", f"examples of shape {list(x.shape[1:])}", "images [C, H, W] with 1 or 3 channels")
        if self.reference == "alexnet" and tuple(x.shape[1:]) != (3, 224, 224):
            raise bad(
                "reference",
                f"'alexnet' with images of shape {list(x.shape[1:])}",
                "images of shape [3, 224, 224], on which AlexNet's errors were measured",
                'Give a model of your own as the reference (given={"reference": model}), or none.',
            )
        cells = [("none", 0), *((kind, severity) for kind in self.kinds for severity in self.severities)]
        for done, (kind, severity) in enumerate(cells):
            changed = x
            if kind != "none":
                with warnings.catch_warnings():  # about the size, which the caption states
                    warnings.simplefilter("ignore")
                    changed = corrupt(x, kind, severity, seed=ctx.seed, ids=ids)
            condition: dict[str, Any] = {"corruption": reported_name(kind) if severity else kind, "severity": severity}
            guess = predict(target, changed, ctx).argmax(1).tolist()
            for id_, label, prediction in zip(ids.tolist(), y.tolist(), guess):
                yield Row("image", id_, condition, label == prediction, None, label, prediction, cost=1)
            if "reference" in given:
                right = (predict(given["reference"], changed, ctx).argmax(1) == y).tolist()
                for id_, label, hit in zip(ids.tolist(), y.tolist(), right):
                    yield Row("image", id_, {**condition, "of": "reference"}, None, float(hit), label)
            ctx.progress(len(x) * done // len(cells))

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        from withstand.corruptions import corruption_names, reported_name

        common = [reported_name(kind) for kind in corruption_names("common")]
        names = [reported_name(kind) for kind in self.kinds]
        own = self._right(rows, names, None)
        n, levels = len(own), len(self.severities)
        some = {"severities": ", ".join(map(str, self.severities))} if levels > 1 else {"severity": self.severities[0]}
        asked: dict[str, Any] = {} if self.severities == LEVELS else some
        found = Findings([_mean("corruption_accuracy", own[:, 1 : 1 + len(common) * levels], asked)])
        for i, name in enumerate(names):
            cells = own[:, 1 + i * levels : 1 + (i + 1) * levels]
            found.metrics.append(_mean("accuracy", cells, {"corruption": name, **asked}))
        if self.severities == LEVELS:
            reference = self._right(rows, names, "reference")
            said = "the given reference model" if len(reference) else ""
            base = reference if len(reference) else np.tile(_alexnet(common), (n, 1)) if self.reference else None
            if base is not None:
                found.metrics += _mce(own, base, len(common), {"reference": "given" if said else "alexnet"})
        values = own[:, 1:].mean(0).reshape(len(names), levels)
        data = {
            "row_label": "corruption",
            "column_label": "severity",
            "rows": names,
            "columns": [str(s) for s in self.severities],
            "values": [[float(v) for v in row] for row in values],
            "unit": "share",
            "better": "higher",
        }
        caption = (
            f"Accuracy on {n} images; without corruption {own[:, 0].mean():.1%}. Severities are those defined for images of "
            "32 or 224 pixels, whichever is nearer; at other sizes they compare with no published figure. frost* uses "
            "procedural textures in place of the original photographs."
        )
        found.figures.append(Figure("heatmap", "Common corruptions", data, caption))
        return found

    def _right(self, rows: Table, names: list[str], of: str | None) -> np.ndarray:
        """[images, 1 + kinds * severities] of 0 and 1: clean first, then kind by kind; no rows where there are none."""
        columns = []
        for condition in [_CLEAN, *({"corruption": k, "severity": s} for k in names for s in self.severities)]:
            part = rows.where(**condition, of=of)
            order = np.argsort(part.id, kind="stable")
            columns.append((part.outcome if of is None else part.value)[order].astype(float))
        return np.stack(columns, 1)


def _mean(name: str, cells: np.ndarray, condition: dict[str, Any]) -> Metric:
    low, high = cluster_bootstrap(cells.mean(1, keepdims=True), lambda m: m[:, 0])
    return Metric(name, float(cells.mean()), low, high, "cluster bootstrap", len(cells), condition=condition)


def _mce(own: np.ndarray, base: np.ndarray, kinds: int, condition: dict[str, Any]) -> list[Metric]:
    """mCE and relative mCE with intervals; none of them where the reference has no error to divide by."""
    end = 1 + kinds * len(LEVELS)
    both = np.concatenate([own[:, :end], base[:, :end]], 1)  # an image is drawn with both models' answers

    def errors(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        wrong = 1 - means
        mine, theirs = wrong[:, :end], wrong[:, end:]
        by_kind = [e[:, 1:].reshape(len(means), kinds, -1).sum(2) for e in (mine, theirs)]
        return by_kind[0], by_kind[1], mine[:, :1] * len(LEVELS), theirs[:, :1] * len(LEVELS)

    def ratio(means: np.ndarray) -> np.ndarray:
        mine, theirs, _, _ = errors(means)
        return _percent(mine, theirs)

    def relative(means: np.ndarray) -> np.ndarray:
        mine, theirs, clean, their_clean = errors(means)
        return _percent(mine - clean, theirs - their_clean)

    found = []
    for name, statistic in (("mce", ratio), ("relative_mce", relative)):
        value = statistic(both.mean(0, keepdims=True))[0]
        if not np.isfinite(value):
            continue
        low, high = cluster_bootstrap(both, lambda m, s=statistic: np.nan_to_num(s(m), nan=np.inf, posinf=np.inf))
        low, high = (v if np.isfinite(v) else None for v in (low, high))
        found.append(Metric(name, float(value), low, high, "cluster bootstrap", len(own), "", "lower", dict(condition)))
    return found


def _percent(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """100 * mean over kinds of mine / theirs, [D]; infinite where some kind does the reference no harm."""
    harmed = (theirs > 1e-12).all(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(harmed, 100 * (mine / theirs).mean(1), np.inf)


def _alexnet(common: list[str]) -> np.ndarray:
    """AlexNet's accuracy in every cell [1 + 15 * 5], its mean over severities standing for each of them."""
    from withstand.corruptions.scores import ALEXNET, ALEXNET_CLEAN

    missing = [name for name in common if name.rstrip("*") not in ALEXNET]
    if missing:
        raise unknown("corruption", missing[0], ALEXNET)
    errors = [ALEXNET_CLEAN, *(ALEXNET[name.rstrip("*")] for name in common for _ in LEVELS)]
    return 1 - np.array(errors)
