"""How embeddings lie: how dense their classes are beside the space between, and how their variance is spread."""

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad


def density(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """pi_intra, pi_inter, pi_ratio and rho of embeddings [N, D], which are brought to length 1 first; int labels [N].

    pi_intra: mean over the classes of two or more items of the mean cosine distance of their pairs. pi_inter: mean cosine
    distance of the pairs of class means, each of length 1. pi_ratio = pi_intra / pi_inter: small where classes are dense
    beside the space between. Undefined ones are NaN: pi_intra without a class of two, pi_inter for a single class,
    pi_ratio where pi_inter is 0 (embeddings that are all equal). rho: see `spectral_decay`.

    Reference: Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning", 2020,
    arXiv 2002.08473.

    Raises: BadInput for values that are NaN or infinite, and labels of another length.
    """
    points = unit(embeddings)
    if labels.shape != (len(points),) or labels.is_floating_point():
        raise bad("labels", f"{labels.dtype} {list(labels.shape)}", f"int labels [{len(points)}]")
    _, place, sizes = labels.to(points.device).unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), points.shape[1], dtype=points.dtype, device=points.device)
    sums.index_add_(0, place, points)
    squares = torch.zeros_like(sums[:, 0]).index_add_(0, place, points.square().sum(1))
    pairs = sizes > 1
    n = sizes.double()
    # the cosines of all pairs of a class sum to |sum of its vectors|^2, with each vector's own
    each = 1 - (sums.square().sum(1) - squares)[pairs] / (n * (n - 1))[pairs]
    middle = F.normalize(sums, dim=1)
    c = len(middle)
    total = middle.sum(0).square().sum() - middle.square().sum()
    intra = _hairless(float(each.mean())) if len(each) else float("nan")
    inter = _hairless(1 - float(total) / (c * (c - 1))) if c > 1 else float("nan")
    ratio = intra / inter if inter != 0 else float("nan")
    return {"pi_intra": intra, "pi_inter": inter, "pi_ratio": ratio, "rho": spectral_decay(embeddings)}


def spectral_decay(embeddings: Tensor) -> float:
    """rho = KL(uniform || p) = -mean(log(n p)), p = s / sum(s) of the n singular values s of the embeddings [N, D] of
    length 1, not centred. 0: all directions are used alike; lower usually generalises better.

    Only singular values above the rounding of single precision (1e-5 of the largest), or of the embeddings' own type where
    that is coarser, count: those of directions that are not used at all would outweigh all others. One direction alone: 0.

    Raises: BadInput for values that are NaN or infinite.
    """
    s = torch.linalg.svdvals(unit(embeddings))
    kinds = (embeddings.dtype, torch.float32) if embeddings.is_floating_point() else (torch.float32,)
    s = s[s > 64 * max(torch.finfo(kind).eps for kind in kinds) * s.max()]
    return float(-(len(s) * s / s.sum()).log().mean()) + 0.0


def unit(embeddings: Tensor) -> Tensor:
    """Embeddings of length 1 as float64 [N, D]. Raises: BadInput for other shapes, and values that are NaN or infinite."""
    if embeddings.dim() != 2 or not embeddings.numel():
        raise bad("embeddings", f"shape {list(embeddings.shape)}", "[N, D] with N, D >= 1")
    if not bool(embeddings.isfinite().all()):
        raise bad("embeddings", "NaN or infinite values", "finite values", "Look at the model that they come from.")
    return F.normalize(embeddings.detach().double(), dim=1)


def _hairless(value: float) -> float:
    """Without the hair that rounding leaves of a distance of 0."""
    return 0.0 if abs(value) < 1e-12 else value
