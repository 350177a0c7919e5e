"""What the model looks at: gradients of its score by the image, drawn and measured."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.audit.check import Check, Table
from withstand.audit.gallery import png
from withstand.audit.measure import labelled, predict
from withstand.audit.saliency import alignment, exchanged, gini, magnitude
from withstand.errors import bad
from withstand.files import write_atomic
from withstand.hardening.jsigr import blurred, saliency_gradient
from withstand.metrics import bootstrap
from withstand.protocols import Batch, Context, Figure, Findings, Metric, Row, Target
from withstand.random import Rows
from withstand.registry import component

SHOWN = 8
"""Examples in the figure."""
_KEPT = 1 << 20
"""Values of images that a shard keeps at most, beyond two images."""
_MEASURES: dict[str, tuple[str, str]] = {
    "insertion_auc": ("share", "higher"),
    "deletion_auc": ("share", "lower"),
    "gradient_gini": ("number", "higher"),
    "gradient_alignment": ("number", "higher"),
}
_BELOW, _ABOVE = np.array([0.13, 0.40, 0.67]), np.array([0.70, 0.09, 0.17])


@component("check", "saliency", systems=("jsigr",))
class Saliency(Check):
    """What the model looks at: the gradient of its score by the image, drawn, and how readable it is.

    The gradient is that of the predicted class's logit; a pixel's saliency its largest absolute value over channels.
    Insertion and deletion: the area under the class's probability while the pixels, the most salient first, are put into
    a blurred image (Gaussian, sigma an eighth of the height), or replaced by the mean colour: do the salient pixels carry
    the decision? Models that are less sure of everything score lower in both. Gini: how few pixels hold the map.
    Alignment: |<x, g>| / |g|, which grows with robustness as far as the model is locally linear. All are means over
    examples with bootstrap intervals; none of them says that a person finds the map plausible.

    steps: of insertion and deletion, each one forward pass.

    References: Petsiuk, Das, Saenko, "RISE", 2018, arXiv 1806.07421; Chalasani et al., "Concise Explanations of Neural
    Networks using Adversarial Training", 2020, arXiv 1810.06583; Etmann et al., "On the Connection Between Adversarial
    Robustness and Saliency Map Interpretability", 2019, arXiv 1905.04172; Tsipras et al., "Robustness May Be at Odds with
    Accuracy", 2019, arXiv 1805.12152, which shows such maps before and after adversarial training.
    """

    steps: int = 16
    examples: int | None = field(default=500, kw_only=True)

    title = "What it looks at"
    access = frozenset({"gradients"})

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise bad("steps", self.steps, "a whole number >= 1")

    def passes(self, target: Target) -> float:
        return self.steps + 3.0

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"measure"}: value = that of the measure; prediction = the class whose logit was followed."""
        x, y, ids = labelled(shard)
        if x.dim() != 4 or target.module is None:
            raise bad("data", f"inputs of shape {tuple(x.shape[1:])}", "images [C, H, W]", "Leave out saliency.")
        module = target.module
        guess = predict(target, x, ctx).argmax(1)
        blocks = zip(x.split(ctx.block or 256), guess.split(ctx.block or 256))
        gradient = torch.cat([saliency_gradient(module, part, label) for part, label in blocks])
        ctx.spend(forwards=len(x), backwards=len(x))

        def sure(z: Tensor) -> Tensor:
            return predict(target, z, ctx).double().softmax(1).gather(1, guess[:, None]).squeeze(1)

        salient = magnitude(gradient)
        blur = blurred(x, max(1.0, x.shape[2] / 8)).to(x.dtype)
        values = {
            "insertion_auc": exchanged(sure, blur, x, salient, self.steps),
            "deletion_auc": exchanged(sure, x, x.mean((2, 3), keepdim=True), salient, self.steps),
            "gradient_gini": gini(salient),
            "gradient_alignment": alignment(x, gradient),
        }
        _keep(ctx, x, gradient, y, guess, ids)
        for measure, found in values.items():
            for id_, value, label, said in zip(ids.tolist(), found.tolist(), y.tolist(), guess.tolist()):
                yield Row("image", id_, {"measure": measure}, None, value, label, said)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        found = Findings()
        for name, (unit, better) in _MEASURES.items():
            values = rows.where(measure=name).value
            low, high = bootstrap(values, seed=ctx.seed)
            metric = Metric(name, float(values.mean()), low, high, "bootstrap", len(values), unit, better)  # type: ignore[arg-type]
            found.metrics.append(metric)
        if figure := _figure(ctx):
            found.figures.append(figure)
        return found


def _keep(ctx: Context, x: Tensor, gradient: Tensor, y: Tensor, guess: Tensor, ids: Tensor) -> None:
    """Keep some images of a shard and their maps; which, depends on the seed and the ids alone, so that all models show
    the same ones."""
    if ctx.folder is None or x.shape[1] not in (1, 3):
        return
    draws = Rows(ctx.seed, ids).uniform((), "shown", dtype=torch.float64)
    chosen = draws.argsort()[: max(2, min(SHOWN, _KEPT // x[0].numel()))]
    buffer = io.BytesIO()
    kept = {"draw": draws, "id": ids, "label": y, "prediction": guess, "image": x, "map": gradient.sum(1)}
    arrays: dict[str, Any] = {name: value[chosen].cpu().numpy() for name, value in kept.items()}
    np.savez_compressed(buffer, **arrays | {k: arrays[k].astype(np.float32) for k in ("image", "map")})
    write_atomic(Path(ctx.folder) / "saliency.npz", buffer.getvalue())


def _figure(ctx: Context) -> Figure | None:
    """The chosen images of all shards beside their maps, its PNGs written under the run folder."""
    shards = sorted(Path(ctx.folder).glob("[0-9]*/saliency.npz")) if ctx.folder and ctx.root else []
    if not shards:
        return None
    found = []
    for path in shards:
        with np.load(path) as held:
            columns = {name: held[name] for name in held.files}
        found += [{name: column[i] for name, column in columns.items()} for i in range(len(columns["id"]))]
    items = []
    for shown in sorted(found, key=lambda f: (f["draw"], f["id"]))[:SHOWN]:
        item: dict[str, Any] = {"id": int(shown["id"])}
        for name in ("label", "prediction"):
            k = int(shown[name])
            item[name] = ctx.classes[k] if k < len(ctx.classes) else str(k)
        for name, pixels in (("image", shown["image"]), ("map", _coloured(shown["map"]))):
            path = write_atomic(Path(ctx.folder) / "shown" / f"{item['id']}_{name}.png", png(pixels))
            item[name] = path.relative_to(ctx.root).as_posix()
        items.append(item)
    caption = (
        "Gradients of the predicted class's score by the image, summed over channels: where brighter pixels would raise "
        "the score (red) or lower it (blue). Each map is scaled on its own."
    )
    return Figure("maps", "Input gradients", {"items": items}, caption)


def _coloured(values: np.ndarray) -> np.ndarray:
    """A signed map [H, W] as colours [3, H, W]: white at 0, red above, blue below, full from the 99th percentile on."""
    share = np.clip(values / max(float(np.quantile(np.abs(values), 0.99)), 1e-30), -1, 1)[None]
    end = np.where(share > 0, _ABOVE[:, None, None], _BELOW[:, None, None])
    return 1 - np.abs(share) * (1 - end)
