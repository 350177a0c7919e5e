"""CBML on handwritten characters and on cars, whose classes were never seen.

Characters (training on five alphabets of Omniglot, searches among the characters of three others): small networks with
trained batch norm learn from scratch, for the same number of steps, with the contrastive Bayesian loss (its constraint at
weights 0, 0.01 and 1; its three forms; the constraint as a mean) and with losses of pytorch-metric-learning. With
pseudo-labels: Multi-Similarity learns two of the five alphabets ("two alphabets"), what it makes of all five is clustered,
into as many clusters as there are characters, and their training goes on from there.

Judged are the last weights: Recall@1 of all test images, each among all others, and pi_ratio, how wide a class lies beside
the space between classes.

Cars ("cars / ...", 20 models of cars learned from, searches among 20 others): as in the paper, networks begin with weights
(of CIFAR-10; there of ImageNet) and batch norm stays frozen, for all losses alike; "cars / before" is what they begin with.
The learning rate of each loss, 1e-3 or 3e-4, is that by which a network that learned from 12 of the 20 models found more
cars among the other 8 (Recall@1 after as many steps, mean of the last 12 of them, one seed).

The paper trains networks with ImageNet weights and frozen batch norm, where the loss does not have to build the features.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from withstand.protocols import Claim
from withstand.reproductions import cars
from withstand.reproductions.characters import TRAINED, characters, densities, embedded, embedder, found_first, row

SYSTEM = "cbml"

ARMS = {
    "contrastive": "metric('contrastive', dim={dim})",
    "triplet": "metric('triplet', dim={dim})",
    "multi_similarity": "metric('multi_similarity', dim={dim})",
    "proxy_anchor": "metric('proxy_anchor', dim={dim})",
    "cbml": "cbml(dim={dim})",
    "cbml w=0.01": "cbml(cbml_loss(var_weight=0.01), dim={dim})",
    "cbml w=0": "cbml(cbml_loss(var_weight=0), dim={dim})",
    "cbml mean": "cbml(cbml_loss(reduction_var='mean'), dim={dim})",
    "cbml sqrt": "cbml(cbml_loss('sqrt'), dim={dim})",
    "cbml constant": "cbml(cbml_loss('constant'), dim={dim})",
}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"size": 14, "drawers": 8, "width": 8, "dim": 16, "epochs": 1, "optimizer": "adam(1e-3)", "test": 4,
              "cars": {"size": 16, "dim": 16, "epochs": 1, "batch": 64, "sampler": "m_per_class(8)"}},
    "cpu": {"size": 14, "drawers": 20, "width": 32, "dim": 64, "epochs": 12, "optimizer": "adam(1e-3)", "test": 20,
            "cars": {"size": 32, "dim": 64, "epochs": 8, "batch": 64, "sampler": "m_per_class(8)"}},
    "gpu": {"size": 28, "drawers": 20, "width": 64, "dim": 512, "epochs": 50, "optimizer": "adam(1e-3)", "test": 20,
            "accelerator": "cuda", "cars": {"size": 64, "dim": 512, "epochs": 60, "batch": 120, "sampler": "m_per_class(8)",
                                            "accelerator": "cuda"}},
}  # fmt: skip
LABELLED = ("Balinese", "Early_Aramaic")
PSEUDO = {
    "pseudo / cbml w=0.01": "cbml(cbml_loss(var_weight=0.01), clusters={clusters}, dim={dim})",
    "pseudo / multi_similarity": "cbml('multi_similarity', clusters={clusters}, dim={dim})",
}
CARS = {
    "cars / contrastive": ("cbml('contrastive', norm='frozen', dim={dim})", 3e-4),
    "cars / triplet": ("cbml('triplet', norm='frozen', dim={dim})", 1e-3),
    "cars / multi_similarity": ("cbml('multi_similarity', norm='frozen', dim={dim})", 1e-3),
    "cars / proxy_anchor": ("cbml('proxy_anchor', norm='frozen', dim={dim})", 1e-3),
    "cars / cbml": ("cbml(norm='frozen', dim={dim})", 3e-4),
    "cars / cbml w=0.01": ("cbml(cbml_loss(var_weight=0.01), norm='frozen', dim={dim})", 1e-3),
    "cars / cbml w=0": ("cbml(cbml_loss(var_weight=0), norm='frozen', dim={dim})", 1e-3),
}

_PAPER = "Kan et al., 2022, arXiv 2210.04402, abstract: the variance constraint helps unseen classes"
_README = "README of the official code: CBML above the other losses on CUB-200-2011"
_TRIAL = "our own trial, from scratch; the paper begins with ImageNet weights"


def _claim(statement: str, first: str, last: str, source: str, metric: str = "recall_at_1") -> Claim:
    return Claim(statement, source, (first, last), metric, "higher", SCALES)


CLAIMS = [
    _claim("The contrastive Bayesian loss (w = 1) finds more characters than the contrastive loss", "contrastive", "cbml",
           _README),
    _claim("... with w = 0.01", "contrastive", "cbml w=0.01", _README),
    _claim("... than the triplet loss (w = 0.01)", "triplet", "cbml w=0.01", _README),
    _claim("... than Multi-Similarity (w = 0.01)", "multi_similarity", "cbml w=0.01", _README),
    _claim("... than Proxy-Anchor (w = 0.01)", "proxy_anchor", "cbml w=0.01", _README),
    _claim("The variance constraint as published (w = 1) helps", "cbml w=0", "cbml", _PAPER),
    _claim("A small variance constraint (w = 0.01) helps", "cbml w=0", "cbml w=0.01", _PAPER),
    _claim("From scratch, a small constraint is better than the published one", "cbml", "cbml w=0.01", _TRIAL),
    _claim("The published constraint contracts the embedding: classes are wider beside the space between", "cbml w=0",
           "cbml", _TRIAL, "pi_ratio"),
    _claim("Pseudo-labels teach more than the labels of two alphabets that they were made from", "two alphabets",
           "pseudo / cbml w=0.01", "Kan et al., 2022, abstract; how labels were made there is unknown"),
    _claim("... and more with this loss than with Multi-Similarity", "pseudo / multi_similarity", "pseudo / cbml w=0.01",
           "our control; not in the paper"),
    *(
        _claim(f"On cars, from weights, the contrastive Bayesian loss (w = 1) finds more than {name}", f"cars / {name}",
               "cars / cbml", _README)
        for name in ("contrastive", "triplet", "multi_similarity", "proxy_anchor")
    ),
    _claim("... and more than without its constraint", "cars / cbml w=0", "cars / cbml", _PAPER),
    _claim("On cars, from weights, a small constraint (w = 0.01) helps", "cars / cbml w=0", "cars / cbml w=0.01", _PAPER),
]  # fmt: skip


def measure_characters(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train every arm on characters and judge it; see the package for the rows."""
    s = SCALES[scale]
    test = characters(None, s["size"], s["test"])
    batch = test.batch(range(len(test)))
    assert batch.y is not None
    searched = batch.x, batch.y
    s = s | {"clusters": len(characters(TRAINED, s["size"], 1).classes)}
    rows = []
    for arm, recipe in ARMS.items():
        progress(f"{arm}: training")
        rows += judged(arm, embedder(recipe, s, seed), *searched)
    progress("two alphabets: training")
    start = embedder(ARMS["multi_similarity"], s, seed, LABELLED)
    rows += judged("two alphabets", start, *searched)
    for arm, recipe in PSEUDO.items():
        progress(f"{arm}: training")
        rows += judged(arm, embedder(recipe, s, seed, start=start), *searched)
    return {"rows": rows}


def measure_cars(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train every arm on cars and judge it, and what they all begin with."""
    s = SCALES[scale]["cars"]
    x, y = cars.searched(s)
    rows = judged("cars / before", cars.Features(cars.learned()).eval(), x, y)
    for arm, (recipe, rate) in CARS.items():
        progress(f"{arm}: training")
        rows += judged(arm, cars.embedder(recipe, rate, s, seed), x, y)
    return {"rows": rows}


PARTS = {"characters": measure_characters, "cars": measure_cars}


def judged(arm: str, model: nn.Module, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Recall@1 of every image, each among all others; pi_ratio of every class."""
    z = embedded(model.to(x.device), x)
    return [row(arm, "recall_at_1", found_first(z, z, y)), row(arm, "pi_ratio", densities(z, y))]
