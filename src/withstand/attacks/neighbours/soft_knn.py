"""The adversarial soft k-nearest-neighbour (ASK) loss: a smooth surrogate of the error of a nearest-neighbour vote."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.errors import bad

Metric = Literal["cosine", "l2"]
Kind = Literal["class", "instance"]
FLOOR = 1e-6
"""What the instance-wise form adds to the probability of the label."""


def ask_loss(
    h: Tensor,
    y: Tensor,
    references: Tensor,
    labels: Tensor,
    tau: float = 0.1,
    metric: Metric = "cosine",
    kind: Kind = "class",
    self_feature: Tensor | None = None,
    floor: float = FLOOR,
) -> Tensor:
    """The ASK loss of features h [N, D] against labelled references, [N]; differentiable in h and the references.

    With S the cosine of h and a reference, or minus their Euclidean distance ("l2"), and r_cj the references of class c:
    "class"     CE of the logits mean_j S(h, r_cj) / tau, for the label y;
    "instance"  -log(p_y + floor), p_c = sum_j exp(S(h, r_cj) / tau) / sum_{c', j} exp(S(h, r_c'j) / tau).

    y: long [N]. references: [M, D], the same for all examples, or [N, M, D]; labels: long [M], or [N, M] of references of
    their own. tau > 0: with cosines the choice decides; 0.01 follows the nearest few references, 0.1 nearly their mean.
    self_feature: [N, D], one more reference of class y for each example (its own clean feature).

    Unequal numbers of references act as a prior of the classes in the instance-wise form.

    >>> references, labels = torch.tensor([[1.0, 0], [0, 2], [3, 0], [0, 1.5]]), torch.tensor([0, 0, 1, 1])
    >>> ask_loss(torch.zeros(1, 2), torch.tensor([0]), references, labels, tau=1, metric="l2")
    tensor([0.3869])

    Reference: Wang, Chen, Yao, Liu, Rajapakse, Hero, "ASK: Adversarial Soft k-Nearest Neighbor Attack and Defense", 2022,
    arXiv 2106.14300.

    Raises: BadInput for tau <= 0, an unknown metric or kind, shapes that do not fit, and classes without references.
    """
    check_settings(tau, metric, kind)
    classes = _classes_of(h, y, references, labels, self_feature)
    return soft_vote(h, y, references, labels, classes, tau, metric, kind, self_feature, floor)


def soft_vote(
    h: Tensor,
    y: Tensor,
    references: Tensor,
    labels: Tensor,
    classes: int,
    tau: float,
    metric: str,
    kind: str,
    self_feature: Tensor | None = None,
    floor: float = FLOOR,
) -> Tensor:
    """`ask_loss` of what was checked before: for loops."""
    with torch.autocast(h.device.type, enabled=False):  # half precision cannot hold cosines that are divided by tau
        s = similarity(h, references, metric)
        of = labels.expand(s.shape)
        if self_feature is not None:
            s = torch.cat([s, similarity(h, self_feature[:, None], metric)], 1)
            of = torch.cat([of, y[:, None]], 1)
        s, own = s / tau, of == y[:, None]
        if kind == "class":
            zeros = s.new_zeros(len(s), classes)
            s = zeros.scatter_add(1, of, s) / zeros.scatter_add(1, of, torch.ones_like(s))
            own = torch.arange(classes, device=y.device) == y[:, None]
        # the lead of the others over the label: 1 - p_y, which both forms take otherwise, is lost to rounding early
        lead = s.masked_fill(own, -torch.inf).logsumexp(1) - s.masked_fill(~own, -torch.inf).logsumexp(1)
        if kind == "instance" and floor > 0:
            return -(torch.sigmoid(-lead) + floor).log()
        return F.softplus(lead)


def similarity(h: Tensor, references: Tensor, metric: str) -> Tensor:
    """Cosines, or minus Euclidean distances, of h [N, D] and references [M, D] or [N, M, D]: [N, M], in single precision
    at least. Zero vectors have cosine 0 with everything. "dot": products as they are."""
    precision = torch.promote_types(h.dtype, torch.float32)
    h, r = h.to(precision), references.to(precision)
    if metric == "l2":
        near = torch.cdist(h if r.dim() == 2 else h[:, None], r, compute_mode="donot_use_mm_for_euclid_dist")
        return -(near if r.dim() == 2 else near[:, 0])
    h, r = (_unit(h), _unit(r)) if metric == "cosine" else (h, r)
    return h @ r.T if r.dim() == 2 else torch.bmm(r, h[:, :, None])[:, :, 0]


def check_settings(tau: Any, metric: Any, kind: Any) -> None:
    """Refuse settings that make no loss."""
    if not 0 < tau < float("inf"):
        raise bad("tau", tau, "a temperature > 0", "Try 0.01 to 0.1 with cosines.")
    for name, value, allowed in (("metric", metric, get_args(Metric)), ("kind", kind, get_args(Kind))):
        if value not in allowed:
            raise bad(name, repr(value), " or ".join(map(repr, allowed)))


def _classes_of(h: Tensor, y: Tensor, references: Tensor, labels: Tensor, self_feature: Tensor | None) -> int:
    """The number of classes, after a look at all shapes and labels."""
    n, d = h.shape if h.dim() == 2 else (-1, -1)
    if n < 0:
        raise bad("h", f"shape {list(h.shape)}", "features [N, D]", "Flatten them: h.flatten(1).")
    shared = references.dim() == 2
    fits = references.shape[-1] == d and references.dim() in (2, 3) and (shared or len(references) == n)
    if not fits:
        raise bad(
            "references", f"shape {list(references.shape)}", f"[M, {d}], or [{n}, M, {d}] with one set per example"
        )
    m = references.shape[-2]
    if labels.shape not in ((m,), (n, m)) or (shared and labels.dim() == 2):
        raise bad("labels", f"shape {list(labels.shape)}", f"[{m}]" if shared else f"[{m}] or [{n}, {m}]")
    if self_feature is not None and self_feature.shape != h.shape:
        raise bad("self_feature", f"shape {list(self_feature.shape)}", f"{list(h.shape)}, that of h")
    if y.shape != (n,) or y.is_floating_point():
        raise bad("y", f"{y.dtype} {list(y.shape)}", f"int64 class indices [{n}]")
    classes = int(labels.max()) + 1 if m and int(labels.min()) >= 0 else 0
    counts = F.one_hot(labels, classes).sum(-2) if classes else None
    if counts is None or classes < 2 or int(counts.min()) < 1:
        got = "none" if counts is None else f"numbers of references per class {counts.tolist()}"
        raise bad("labels", got, "at least one reference of every class from 0 on, and two classes or more")
    if n and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise bad("y", f"labels from {int(y.min())} to {int(y.max())}", f"0 to {classes - 1}, the references' classes")
    return classes


def _unit(v: Tensor) -> Tensor:
    length = v.norm(dim=-1, keepdim=True)
    return v / torch.where(length > 0, length, 1.0)
