"""Handwritten characters whose alphabets were never seen: what experiments on embeddings share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.data import from_arrays, load_data
from withstand.data.images import Images
from withstand.protocols import Dataset
from withstand.random import derive
from withstand.registry import parse
from withstand.representation.metrics import retrieval_scores
from withstand.training import Trainer

TRAINED = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
"""Alphabets of Omniglot that are learned from; the other three are for tests."""


def characters(alphabets: Sequence[str] | None, size: int, drawers: int) -> Dataset:
    """Characters [1, size, size] by the first drawers, of these alphabets; None: of those that nobody learns from."""
    data = load_data("omniglot", size=size)
    assert isinstance(data, Images)
    of = [name.split("/")[0] for name in data.classes]
    chosen = [c for c, a in enumerate(of) if (a not in TRAINED if alphabets is None else a in alphabets)]
    labels = torch.from_numpy(data.labels)
    places = torch.cat([(labels == c).nonzero().flatten()[:drawers] for c in chosen])
    y = torch.arange(len(chosen)).repeat_interleave(drawers)
    names = [data.classes[c] for c in chosen]
    return from_arrays(data.batch(places.tolist()).x.numpy(), y.numpy(), "omniglot", names, layout="nchw")


def network(size: int, width: int, seed: int) -> nn.Module:
    """Three blocks of convolution, batch norm and ReLU, the first two with max pooling, and a linear layer."""

    def block(a: int, b: int, pool: bool) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights") & 0x7FFFFFFF)
        side = size // 4
        return nn.Sequential(
            *block(1, width, True), *block(width, 2 * width, True), *block(2 * width, 2 * width, False), nn.Flatten(),
            nn.Linear(2 * width * side * side, 2),
        )  # fmt: skip


def embedder(
    recipe: str, s: Mapping[str, Any], seed: int, alphabets: Sequence[str] = TRAINED, start: nn.Module | None = None
) -> nn.Module:
    """What a recipe makes of a fresh network, or of `start`, on these alphabets."""
    trainer = Trainer(
        epochs=s["epochs"], batch=64, sampler="m_per_class(8)", optimizer=s["optimizer"], schedule="constant",
        accelerator=s.get("accelerator", "cpu"),
    )  # fmt: skip
    data = characters(alphabets, s["size"], s["drawers"])
    model = network(s["size"], s["width"], seed) if start is None else start
    return trainer.fit(parse(recipe.format(**s), "recipe"), model, data, seed=seed).last.eval().cpu()


@torch.no_grad()
def embedded(model: nn.Module, x: Tensor) -> Tensor:
    """Unit vectors [N, d]."""
    return torch.cat([model(part) for part in x.split(500)])


def found_first(queries: Tensor, held: Tensor, y: Tensor) -> Tensor:
    """Whether the nearest of the embeddings held, the query's own left out, is of its class: bool [N]; mean = Recall@1."""
    itself = torch.arange(len(y), device=y.device)
    return retrieval_scores(queries, y, held, y, ks=(1,), at_r=False, without=itself)["recall_at_1"] > 0


def densities(z: Tensor, y: Tensor) -> Tensor:
    """For each class the mean cosine distance of its pairs beside that of the class means, [classes]; their mean is the
    pi_ratio of `withstand.representation.density`."""
    groups = [z[y == c].double() for c in y.unique()]
    means = F.normalize(torch.stack([g.mean(0) for g in groups]), dim=1)
    return torch.stack([_apart(g) for g in groups]) / _apart(means)


def _apart(z: Tensor) -> Tensor:
    """The mean cosine distance of all pairs."""
    n = len(z)
    return 1 - ((z @ z.T).sum() - z.square().sum()) / (n * (n - 1))


def row(arm: str, metric: str, examples: Tensor) -> dict[str, Any]:
    """One row of yes and no, or of numbers."""
    if examples.dtype == torch.bool:
        return {"arm": arm, "metric": metric, "examples": "".join("1" if e else "0" for e in examples.tolist())}
    return {"arm": arm, "metric": metric, "examples": [round(v, 5) for v in examples.tolist()]}
