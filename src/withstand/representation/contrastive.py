"""Contrastive losses of views on the unit sphere, one value for each anchor.

Notation: z_i the unit vector of view i of 2n, i+ the other view of the same example, tau the temperature,
s_ia = z_i . z_a / tau, A(i) all views but i.

Scores are computed in float32 at least, also under autocast: masked entries are -inf, which half precision would not
survive once they were subtracted from each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad


def two_views(n: int, device: torch.device | str = "cpu") -> Tensor:
    """The other view of each of 2n views, int64 [2n], where both views of example i stand at i and n + i."""
    return (torch.arange(2 * n, device=device) + n) % (2 * n)


def nt_xent(z: Tensor, pairs: Tensor, tau: float, drop_mask: Tensor | None = None) -> Tensor:
    """NT-Xent of each anchor, [2n]: -s_{i i+} + log sum_{a in A(i) minus FN(i)} exp(s_ia).

    z: float [2n, d]; rows are scaled to unit length here. pairs: int64 [2n], the other view of each. drop_mask: bool
    [2n, 2n], FN(i) of each anchor, what is eliminated from its sum; the positive stays whatever the mask says.

    The loss is >= 0, and eliminating views never increases it.

    Raises: BadInput for an odd number of views, a temperature that is not above zero, a mask of another shape,
    or a view that is paired with itself.

    References: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
    2020, arXiv 2002.05709; elimination: Huynh, Kornblith, Walter, Maire, Khademi, "Boosting Contrastive Self-Supervised
    Learning with False Negative Cancellation", 2022, arXiv 2011.11765.
    """
    return _contrast(z, _positive(z, pairs), tau, drop_mask)


def attraction(z: Tensor, pairs: Tensor, tau: float, false_negatives: Tensor) -> Tensor:
    """NT-Xent with the false negatives as further positives, [2n]:
    mean over p in {i+} and FN(i) of -s_ip + log sum_{a in A(i)} exp(s_ia).

    Arguments as of `nt_xent`. Reference: Huynh et al., 2022, arXiv 2011.11765.
    """
    _fits(false_negatives, z, "false_negatives")
    return _contrast(z, _positive(z, pairs) | false_negatives, tau)


def supcon(z: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Supervised contrastive loss (the form with the mean outside of the logarithm) of each anchor, [M]:
    mean over p != i of the same label of -s_ip + log sum_{a in A(i)} exp(s_ia).

    z: float [M, d], scaled to unit length here. labels: int64 [M].

    Raises: BadInput where an anchor has nobody of its label, or the temperature is not above zero.

    Reference: Khosla et al., "Supervised Contrastive Learning", 2020, arXiv 2004.11362.
    """
    if labels.shape != (len(z),):
        raise bad("labels", f"shape {tuple(labels.shape)}", f"one label for each of {len(z)} views")
    positive = labels[:, None] == labels
    if not bool((positive.sum(1) > 1).all()):
        raise bad("labels", "a label that occurs once", "two views at least of each label", "Give both views.")
    return _contrast(z, positive, tau)


def same_label(labels: Tensor) -> Tensor:
    """Which views share a label, bool [M, M]: the false negatives as an oracle knows them."""
    return labels[:, None] == labels


def _contrast(z: Tensor, positive: Tensor, tau: float, drop_mask: Tensor | None = None) -> Tensor:
    """Mean over positives of -s_ip, plus the logarithm of the sum over what is not dropped; nothing meets itself."""
    if not tau > 0:
        raise bad("tau", tau, "a temperature > 0")
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        s = unit @ unit.T / tau
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = positive & ~own
        out = own
        if drop_mask is not None:
            _fits(drop_mask, z, "drop_mask")
            out = own | (drop_mask & ~positive)
        pull = torch.where(positive, s, 0).sum(1) / positive.sum(1)
        return s.masked_fill(out, -torch.inf).logsumexp(1) - pull


def _positive(z: Tensor, pairs: Tensor) -> Tensor:
    if z.dim() != 2 or len(z) % 2:
        raise bad("z", f"shape {tuple(z.shape)}", "[2n, d], two views of each example")
    if pairs.shape != (len(z),) or pairs.is_floating_point():
        raise bad("pairs", f"{pairs.dtype} {tuple(pairs.shape)}", f"int64 [{len(z)}], the other view of each")
    if bool((pairs == torch.arange(len(z), device=pairs.device)).any()):
        raise bad("pairs", "a view that is its own pair", "the other view of each", "Nothing would be left to attract.")
    return torch.zeros(len(z), len(z), dtype=torch.bool, device=z.device).scatter_(1, pairs[:, None], True)


def _fits(mask: Tensor, z: Tensor, name: str) -> None:
    if mask.dtype != torch.bool or mask.shape != (len(z), len(z)):
        raise bad(name, f"{mask.dtype} {tuple(mask.shape)}", f"bool [{len(z)}, {len(z)}]")
