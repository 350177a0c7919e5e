"""What contrastive training does to the sphere: how tight pairs and classes are, how far apart, how evenly spread.

References: alignment and uniformity: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere", 2020, arXiv 2005.10242; radius, margin, gap closed: Gupta, Akhtar, Mian, Shah, "Contrastive
Self-Supervised Learning Leads to Higher Adversarial Susceptibility", 2022, arXiv 2207.10862.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad

_BLOCK = 1024


def alignment(a: Tensor, b: Tensor) -> float:
    """E ||a - b||^2 of the unit vectors of two views [N, d], in [0, 4]; 0 where views agree.

    Raises: BadInput for shapes that differ.
    """
    if a.shape != b.shape:
        raise bad("b", f"shape {tuple(b.shape)}", f"{tuple(a.shape)}, the other view of each")
    return float((_unit(a) - _unit(b)).square().sum(1).mean())


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """log E exp(-t ||z_i - z_j||^2) over pairs i < j of unit vectors [N, d], in [-4t, 0]; lower is more even.

    Block by block: no matrix of all distances is made. Raises: BadInput for fewer than two vectors.
    """
    if len(z) < 2:
        raise bad("z", f"{len(z)} vectors", "two or more")
    unit, total = _unit(z), torch.tensor(-torch.inf, dtype=torch.float64)
    for first in range(0, len(unit), _BLOCK):
        rows = unit[first : first + _BLOCK]
        d = (2 - 2 * rows @ unit[first:].T).clamp_min(0)
        later = torch.ones_like(d, dtype=torch.bool).triu(1)
        if bool(later.any()):
            total = torch.logaddexp(total, (-t * d[later]).logsumexp(0).cpu())
    return float(total) - math.log(len(z) * (len(z) - 1) / 2)


def class_geometry(z: Tensor, labels: Tensor) -> dict[str, float]:
    """How unit vectors [N, d] lie by their labels int64 [N].

    `intra_class_radius`: mean distance to the mean of the own class. `inter_class_margin`: smallest distance between the
    means of two classes. `inter_intra_ratio`: margin over radius, infinite where every class is a point.
    `same_class_cosine`, `other_class_cosine`: means over pairs; the first is NaN where no class has two examples.

    Raises: BadInput for a single class, or lengths that differ.
    """
    if labels.shape != (len(z),):
        raise bad("labels", f"shape {tuple(labels.shape)}", f"one label for each of {len(z)} vectors")
    classes, place, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise bad("labels", f"{len(classes)} class", "two or more", "Margins lie between classes.")
    unit = _unit(z)
    sums = torch.zeros(len(classes), unit.shape[1], dtype=unit.dtype, device=unit.device).index_add_(0, place, unit)
    means = sums / counts[:, None]
    radius = float((unit - means[place]).norm(dim=1).mean())
    margin = float(torch.pdist(means).min())
    n = len(unit)
    # sums of all cosines, from the sums of vectors; every vector meets itself once
    own, whole = float(sums.square().sum()), float(sums.sum(0).square().sum())
    pairs = float(counts.square().sum()) - n
    return {
        "intra_class_radius": radius,
        "inter_class_margin": margin,
        "inter_intra_ratio": margin / radius if radius > 0 else math.inf,
        "same_class_cosine": (own - float(unit.square().sum())) / pairs if pairs else math.nan,
        "other_class_cosine": (whole - own) / (n * n - n - pairs),
    }


def representation_measures(z: Tensor, labels: Tensor) -> dict[str, float]:
    """`class_geometry`, `uniformity` and `effective_rank` of features [N, d], as unit vectors."""
    return {**class_geometry(z, labels), "uniformity": uniformity(z), "effective_rank": effective_rank(_unit(z))}


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of features [N, d] as shares of their sum, in [1, min(N, d)]: how many
    directions are in use. Raises: BadInput where all features are zero.

    Reference: Roy, Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(z.detach().double())
    if not bool(values.sum() > 0):
        raise bad("z", "features that are all zero, or not finite", "some other vectors")
    shares = values[values > 0] / values.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def sensitivity(features: Callable[[Tensor], Tensor], x: Tensor, moved: Tensor) -> Tensor:
    """||f(x + d) - f(x)||_2 / ||d||_2 of each example, [N]; 0 where nothing moved. moved: x + d, like x [N, ...]."""
    with torch.no_grad():
        change = (features(moved) - features(x)).flatten(1).norm(dim=1)
    d = (moved - x).flatten(1).norm(dim=1)
    return torch.where(d > 0, change / d, 0.0)


def false_negative_precision(selected: Tensor, labels: Tensor) -> float:
    """The share of the selected pairs bool [M, M] that share a label int64 [M]; NaN where nothing is selected."""
    chosen = int(selected.sum())
    return int((selected & (labels[:, None] == labels)).sum()) / chosen if chosen else math.nan


def gap_closed(method: float, plain: float, supervised: float) -> float:
    """(method - plain) / (supervised - plain): 0 for the plain contrastive encoder, 1 for the supervised reference.

    Raises: BadInput where the reference is no better than the plain encoder: there is no gap to close.
    """
    if not supervised > plain:
        raise bad("supervised", supervised, f"more than the plain encoder's {plain}", "There is no gap to close.")
    return (method - plain) / (supervised - plain)


def relative_drop(clean: float, robust: float) -> float:
    """(clean - robust) / clean: the share of its accuracy that a model loses, for models of different clean accuracy."""
    if not 0 < clean <= 1:
        raise bad("clean", clean, "an accuracy in (0, 1]")
    return (clean - robust) / clean


def _unit(z: Tensor) -> Tensor:
    if z.dim() != 2 or not bool(z.isfinite().all()):
        raise bad("z", f"shape {tuple(z.shape)}, or values that are not finite", "finite vectors [N, d]")
    return F.normalize(z.detach().double(), dim=1)
