"""Centre codes: the code that lies nearest to what is relevant and farthest from the rest, in closed form."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad

Weights = Literal["jaccard", "published"]
"""How much a relevant item counts: by the labels that it shares, or all alike."""
_ROOM = 1 << 24  # numbers held at once


def centre_codes(y: Any, codes: Any, labels: Any, weights: Weights = "jaccard") -> Tensor:
    """The centre code of each label set, [n, K] in {-1, 0, 1}.

    With P the items that share a label with y and Q the others, b minimises over all codes

        sum_{i in P} sum_{j in Q} w_i D_H(b, b_i) - D_H(b, b_j),    w_i = |y and y_i| / |y or y_i|  ("jaccard") or 1,

    which is linear in every bit, so that b = sign(mean_{i in P} w_i b_i - mean_{j in Q} b_j). A bit on which both sides
    agree is free, and is 0: objectives take no notice of it. Without Q, b = sign(sum_P w_i b_i); without P,
    b = -sign(sum_Q b_j), our choice: the official code leaves both at zero.

    "published" is what the official code does: it finds the Jaccard weights, then writes their signs over them. Where every
    item has one label both are the same.

    y: long [n] or 0/1 [n, C], the labels of the queries. codes: [N, K] of -1 and 1. labels: long [N] or 0/1 [N, C].

    >>> centre_codes(torch.tensor([0]), torch.tensor([[1.0, -1], [1, 1], [-1, 1]]), torch.tensor([0, 0, 1]))
    tensor([[ 1., -1.]])

    Reference: Wang, Lin, Li, "CgAT: Center-Guided Adversarial Training for Deep Hashing-Based Retrieval", WWW 2023, arXiv
    2204.10779.

    Raises: BadInput for codes that hold something else, labels that are not binary, unequal numbers, and no items.
    """
    codes = as_codes(codes)
    y, labels = same_classes(as_labels(y, "y"), as_labels(labels, "labels"))
    check_pair(codes, labels)
    if weights not in get_args(Weights):
        raise bad("weights", repr(weights), " or ".join(map(repr, get_args(Weights))))
    return centres(y.to(codes.device), codes, labels.to(codes.device), weights)


def centres(y: Tensor, codes: Tensor, labels: Tensor, weights: Weights) -> Tensor:
    """`centre_codes` of what was checked before: for loops. Labels are 0/1 [., C]."""
    double, each = codes.double(), max(1, _ROOM // len(codes))  # in float64, sums that cancel come out as ties
    return torch.cat([_of(part.double(), double, labels.double(), weights) for part in y.split(each)]).to(codes.dtype)


def _of(y: Tensor, codes: Tensor, labels: Tensor, weights: Weights) -> Tensor:
    shared = y @ labels.T
    near = (shared > 0).double()
    w = shared / (y.sum(1, keepdim=True) + labels.sum(1) - shared).clamp_min(1) if weights == "jaccard" else near
    positives = near.sum(1, keepdim=True)
    negatives = len(codes) - positives
    lead = w @ codes / positives.clamp_min(1) - (1 - near) @ codes / negatives.clamp_min(1)
    return torch.where(lead.abs() < 1e-9, 0.0, lead.sign())


def sign(u: Tensor) -> Tensor:
    """The code of real outputs: 1 where u >= 0, else -1."""
    return torch.where(u >= 0, 1.0, -1.0).to(u.dtype)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Hamming distances of codes a [n, K] and b [N, K], float [n, N]: (K - a . b) / 2."""
    return (a.shape[1] - a @ b.T) / 2


def as_codes(codes: Any, name: str = "codes") -> Tensor:
    """Codes as floats [N, K]. Raises: BadInput for anything but rows of -1 and 1."""
    made = torch.as_tensor(np.asarray(codes) if not isinstance(codes, Tensor) else codes)
    if made.dim() != 2 or not len(made) or not made.shape[1] or not bool((made.abs() == 1).all()):
        got = f"shape {list(made.shape)}" if made.dim() != 2 or not made.numel() else "other values"
        raise bad(name, got, "rows [N, K] of -1 and 1, one at least", "Outputs become codes by their signs.")
    return made.to(made.dtype if made.is_floating_point() else torch.float32)


def as_labels(y: Any, name: str = "y", classes: int = 0) -> Tensor:
    """Labels as 0/1 floats [N, C], of class indices [N] or of 0/1 [N, C]; C is at least `classes`.

    Raises: BadInput for anything else.
    """
    y = torch.as_tensor(np.asarray(y) if not isinstance(y, Tensor) else y)
    if y.dim() == 1 and not y.is_floating_point() and y.dtype != torch.bool and len(y) and int(y.min()) >= 0:
        return torch.nn.functional.one_hot(y.long(), max(int(y.max()) + 1, classes)).float()
    if y.dim() != 2 or not len(y) or not bool(((y == 0) | (y == 1)).all()):
        got = f"{str(y.dtype).removeprefix('torch.')} {list(y.shape)}"
        raise bad(name, got, "class indices int64 [N], or zeros and ones [N, C]")
    return torch.nn.functional.pad(y.float(), (0, max(0, classes - y.shape[1])))


def same_classes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two label matrices brought to the larger number of classes."""
    most = max(a.shape[1], b.shape[1])
    return as_labels(a, classes=most), as_labels(b, classes=most)


def check_pair(codes: Tensor, labels: Tensor) -> None:
    """Refuse codes and labels of different items."""
    if len(codes) != len(labels):
        raise bad("labels", f"{len(labels)} for {len(codes)} codes", "one row of labels for each code")
