"""Targeted attacks by anchor codes: DHTA, and P2P, its case of one item."""

from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import Problem
from withstand.attacks.engine.needs import needs_whole
from withstand.attacks.hashing.aim import CodeProduct
from withstand.attacks.hashing.centres import same_classes
from withstand.attacks.hashing.targets import Targeted
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("attack", "dhta", systems=("cgat",))
class DHTA(Targeted):
    """Draw the query's code to the anchor of some items with a wanted label (targeted, hashing models).

    z <- P(z + step * eps * sign(grad (1/K) u(z) . a)), a = sign(sum of the codes of `anchors` database items, drawn at
    random, that have the wanted labels and no others; where no item has, that share one); of fewer items all are taken. A
    bit on which they are divided is free.

    target, database: see `Targeted`. anneal: tanh(alpha F) in the place of u, alpha growing from 0.1 to 1 as in the paper;
    the official code runs without it.

    Reference: Bai, Chen, Li, Wu, Guo, Xia, Yang, "Targeted Attack for Deep Hashing based Retrieval", ECCV 2020, arXiv
    2004.07955.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 100
    step: float = 1 / 8
    random_start: bool = False
    anchors: int = 9
    anneal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_whole(self, "anchors")

    @property
    def anneals(self) -> bool:  # type: ignore[override]
        """As the field says."""
        return self.anneal

    def problem(self, **settings: Any) -> Problem:
        base = self.known.to(settings["x"])

        def anchor(wanted: Tensor, rows: Rows) -> Tensor:
            return anchor_codes(*same_classes(wanted, base.labels), base.codes, self.anchors, rows)

        aim = CodeProduct(settings["model"], anchor, away=False, alpha=0.1 if self.anneal else None)
        return super().problem(**{"objective": aim, **settings})


@component("attack", "p2p", systems=("cgat",))
class P2P(DHTA):
    """Draw the query's code to that of one item with a wanted label: `dhta` with a single anchor (hashing models).

    Reference: Bai, Chen, Li, Wu, Guo, Xia, Yang, "Targeted Attack for Deep Hashing based Retrieval", ECCV 2020, arXiv
    2004.07955.
    """

    anchors: int = 1


def anchor_codes(wanted: Tensor, labels: Tensor, codes: Tensor, anchors: int, rows: Rows) -> Tensor:
    """sign(sum of the codes of `anchors` items with just the wanted labels, or else with one of them): -1, 0, 1, [N, K]."""
    shared = wanted @ labels.T
    same = (shared == wanted.sum(1, keepdim=True)) & (shared == labels.sum(1)) & (shared > 0)
    suited = torch.where(same.any(1, keepdim=True), same, shared > 0)
    order = rows.uniform((len(codes),), "anchors").to(codes.device).masked_fill(~suited, -1.0)
    found, chosen = order.topk(min(anchors, len(codes)), dim=1)
    return (codes[chosen] * (found >= 0)[:, :, None]).sum(1).sign()
