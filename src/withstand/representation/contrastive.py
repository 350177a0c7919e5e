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
    return other_views(n, 2, device)[:, 0]


def other_views(n: int, views: int, device: torch.device | str = "cpu") -> Tensor:
    """The other views of each of views * n, int64 [views * n, views - 1]; those of example i stand at i, n + i, ..."""
    steps = n * torch.arange(1, views, device=device)
    return (torch.arange(views * n, device=device)[:, None] + steps) % (views * n)


def nt_xent(z: Tensor, pairs: Tensor, tau: float, drop_mask: Tensor | None = None) -> Tensor:
    """NT-Xent of each anchor, [M]: -s_{i i+} + log sum_{a in A(i) minus FN(i)} exp(s_ia).

    z: float [M, d], M = 2n; rows are scaled to unit length here. pairs: int64 [M], the other view of each; or [M, v - 1]
    where M = vn, the other views of each, over which the first term is averaged. drop_mask: bool [M, M], FN(i) of each
    anchor, what is eliminated from its sum; positives stay whatever the mask says.

    The loss of two views is >= 0, and eliminating views never increases it.

    Raises: BadInput for an odd number of views, a temperature that is not above zero, a mask of another shape,
    or a view that is paired with itself.

    References: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
    2020, arXiv 2002.05709; elimination: Huynh, Kornblith, Walter, Maire, Khademi, "Boosting Contrastive Self-Supervised
    Learning with False Negative Cancellation", 2022, arXiv 2011.11765.
    """
    return _contrast(z, _positive(z, pairs), tau, drop_mask)


def debiased(z: Tensor, pairs: Tensor, tau: float, tau_plus: float) -> Tensor:
    """Debiased contrastive loss of each anchor, [2n]: -s_{i i+} + log [exp(s_{i i+}) + N g_i], N = 2n - 2,
    g_i = max{(mean over negatives of exp(s_ia) - tau_plus exp(s_{i i+})) / (1 - tau_plus), exp(-1 / tau)}.

    No view is named as a false negative; the mean is corrected for their share. tau_plus: how likely a negative is of the
    anchor's class, in [0, 1); 0 is NT-Xent. Other arguments as of `nt_xent`, of two views.

    Raises: BadInput for a share out of range, fewer than two examples, and as `nt_xent`.

    Reference: Chuang, Robinson, Yen-Chen, Torralba, Jegelka, "Debiased Contrastive Learning", 2020, arXiv 2007.00224.
    """
    if not 0 <= tau_plus < 1:
        raise bad("tau_plus", tau_plus, "a share in [0, 1)")
    positive = _positive(z, pairs)
    if len(z) < 4:
        raise bad("z", f"{len(z)} views", "four or more, of two examples at least")
    if tau_plus == 0:
        return _contrast(z, positive, tau)
    s, own = _scores(z, tau)
    with torch.autocast(z.device.type, enabled=False):
        n = len(z) - 2
        pull = s[positive]
        most = s.masked_fill(own, -torch.inf).amax(1).detach()  # keeps the exponentials in range
        near = (pull - most).exp()
        far = (s.masked_fill(own | positive, -torch.inf) - most[:, None]).exp().sum(1)
        least = n * (-1 / tau - most).exp()
        return (near + torch.maximum((far - tau_plus * n * near) / (1 - tau_plus), least)).log() + most - pull


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
    s, own = _scores(z, tau)
    with torch.autocast(z.device.type, enabled=False):
        positive = positive & ~own
        out = own
        if drop_mask is not None:
            _fits(drop_mask, z, "drop_mask")
            out = own | (drop_mask & ~positive)
        pull = torch.where(positive, s, 0).sum(1) / positive.sum(1)
        return s.masked_fill(out, -torch.inf).logsumexp(1) - pull


def _scores(z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """s [M, M], and where a view meets itself."""
    if not tau > 0:
        raise bad("tau", tau, "a temperature > 0")
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        return unit @ unit.T / tau, torch.eye(len(z), dtype=torch.bool, device=z.device)


def _positive(z: Tensor, pairs: Tensor) -> Tensor:
    others = pairs.view(len(pairs), -1)
    views = others.shape[1] + 1
    if z.dim() != 2 or len(z) % views:
        raise bad(
            "z", f"shape {tuple(z.shape)}", f"[{views}n, d], {'two' if views == 2 else views} views of each example"
        )
    if others.shape != (len(z), views - 1) or pairs.is_floating_point():
        raise bad("pairs", f"{pairs.dtype} {tuple(pairs.shape)}", f"int64 [{len(z)}], the other view of each")
    if bool((others == torch.arange(len(z), device=pairs.device)[:, None]).any()):
        raise bad("pairs", "a view that is its own pair", "the other view of each", "Nothing would be left to attract.")
    return torch.zeros(len(z), len(z), dtype=torch.bool, device=z.device).scatter_(1, others, True)


def _fits(mask: Tensor, z: Tensor, name: str) -> None:
    if mask.dtype != torch.bool or mask.shape != (len(z), len(z)):
        raise bad(name, f"{mask.dtype} {tuple(mask.shape)}", f"bool [{len(z)}, {len(z)}]")
