"""Adversarial contrastive learning: robust encoders without labels."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.models.layers import add_branches, frozen_statistics, keep_branch, route
from withstand.protocols import Batch, Dataset, Seen
from withstand.random import Rows
from withstand.registry import component
from withstand.registry import replace as changed
from withstand.representation.contrastive import nt_xent, two_views
from withstand.representation.encoders import say_spread
from withstand.representation.simclr import Contrastive
from withstand.threats import Linf
from withstand.training.recipe import Step

CLEAN, ADVERSARIAL = "clean", "adversarial"


@component("recipe", "acl", systems=("csl_robustness",))
class ACL(Contrastive):
    """Contrast of clean views and of views attacked together, each through batch norm of its own (dual stream).

    min 1/2 [NTXent(z_clean) + NTXent(z_adv)], z_adv of views moved by PGD so as to increase NT-Xent of both views jointly.

    mode: "simclr" is ACL as published; "afnc", "fnc" and "oracle" leave out the same false negatives in the attack and in
    both terms, chosen on the clean views before the attack. attack: on the adversarial branch, in eval mode; five steps
    of 2/255 in the ball of 8/255. branches: "shared" sends all through the same batch norm, and is what networks without
    any take. ship: the branch that is kept. Other fields as of `contrastive`.

    Fine-tune what comes out adversarially: `linear_probe`, then `trades` or `pgd_at` on that. The published training takes
    LARS at rate 5, batches of 512 and 1000 epochs.

    References: Jiang, Chen, Chen, Wang, "Robust Pre-Training by Adversarial Contrastive Learning", 2020, arXiv 2010.13337;
    removal: Gupta et al., 2022, arXiv 2207.10862.
    """

    defaults: ClassVar[Mapping[str, Any]] = {**Contrastive.defaults, "batch": 512}

    attack: AttackField = PGD(Linf(8 / 255), steps=5, step=1 / 4)
    branches: Literal["own", "shared"] = "own"
    ship: Literal["clean", "adversarial"] = ADVERSARIAL

    streams: ClassVar[tuple[str, ...]] = (CLEAN, ADVERSARIAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode in ("attraction", "debiased", "supcon"):
            raise bad(
                "mode", self.mode, "simclr, afnc, fnc or oracle", "The fix of adversarial contrast is elimination."
            )
        if not hasattr(self.attack, "objective"):
            raise bad("attack", repr(self.attack), "an attack with an objective, e.g. pgd(linf(8/255), steps=5)")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = super().setup(model, data, rows)
        if self.branches == "own":
            if not any(isinstance(m, _BatchNorm) for m in system.model.modules()):
                raise bad("model", "no batch norm", "a network with batch norm", "Or take branches='shared'.")
            add_branches(system.model, self.streams)
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        made = super().craft(system, batch, step)
        views, labels = made.extra["views"], made.extra.get("labels")
        pairs, dropped = two_views(len(batch), views.device), {}
        if self.mode != "simclr":  # which leaves nothing out, and needs no pass to know it
            with torch.no_grad(), self.through(system, CLEAN), frozen_statistics(system):
                dropped = {"dropped": self.false_negatives(system(views), pairs, labels, step)}
        aimed = changed(self.attack, objective=Instances(pairs, self.tau, **dropped))
        apart = replace(step, rows=Rows(step.rows.seed, torch.cat([step.rows.ids, ~step.rows.ids])))
        with self.through(system, ADVERSARIAL):
            moved = apart.attack(aimed, system, views, None)
        return replace(made, extra={**made.extra, "adversarial": moved, **dropped})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        dropped, terms = batch.extra.get("dropped"), []
        pairs = two_views(len(batch), batch.x.device)
        for branch, name in ((CLEAN, "views"), (ADVERSARIAL, "adversarial")):
            with self.through(system, branch):
                z = system(batch.extra[name])
            terms.append(nt_xent(z, pairs, self.tau, dropped).mean())
            step.say(f"loss_{branch}", terms[-1])
        say_spread(step, z)
        return (terms[0] + terms[1]) / 2

    def finish(self, system: Any) -> nn.Module:
        return keep_branch(system.model, self.ship) if self.branches == "own" else system.model

    def through(self, system: Any, to: str) -> Any:
        """A context in which the system's batch norm is that of a branch."""
        return route(system.model, to) if self.branches == "own" else nullcontext()


class Instances:
    """NT-Xent of all views of a batch as an objective; every view's value depends on the others."""

    reads = ("logits",)
    coupled = True
    criterion = None
    classifies = False

    def __init__(self, pairs: Tensor, tau: float, dropped: Tensor | None = None) -> None:
        self.pairs, self.tau, self.dropped = pairs, tau, dropped

    def __call__(self, seen: Seen, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return nt_xent(seen.logits, self.pairs, self.tau, self.dropped)
