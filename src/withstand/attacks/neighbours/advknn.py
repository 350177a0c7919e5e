"""AdvKNN: votes have no gradient, so a network that has learned to tell them is attacked in their place."""

from typing import Annotated, Any, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor

from withstand.attacks.engine import Attack, Point, Problem
from withstand.attacks.neighbours.block import (
    KNNBlock,
    ce_weight_of,
    check_weights,
    disagreement,
    divergence,
    loaded,
)
from withstand.attacks.pgd import PGD, needs_fixed_set, start_of
from withstand.errors import bad
from withstand.models.neighbours import knn_of
from withstand.objectives import Misclassified, State
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf, ThreatField


def _block(value: Any) -> Any:
    """A block, what `fit_attack` returned, or the text of a folder, which is read when it is needed first."""
    if value is None or isinstance(value, (str, KNNBlock)):
        return value
    return loaded(value)


BlockField = Annotated[Any, PlainValidator(_block)]


@component("objective", "away_from_votes", systems=("advknn",))
class AwayFromVotes:
    """Away from the clean votes, as a block tells them: sum_l kl_weight KL(p_l || q_l) + ce_weight CE(q_l, argmax p_l).

    p_l: shares of the votes of layer l at the clean point; q_l = softmax(g_l(f_l(z))), the block's. Every layer is paired
    with its own votes. Needs no labels. The block was fitted so that the divergence is least at the clean point: alone,
    without the cross-entropy or a random start, its gradient there is little but noise.

    block: what `knn_block` fitted to the attacked classifier. ce_weight: None takes 20 for one layer and 0.3 for several.
    variant: "published" pairs the layers as the released code does, the first one's votes with the last one's block.
    """

    block: BlockField = None
    kl_weight: float = 1.0
    ce_weight: float | None = None
    variant: Literal["correct", "published"] = "correct"

    coupled = False
    criterion = Misclassified()

    def __post_init__(self) -> None:
        if self.block is None:
            raise bad("block", "none", "a fitted block", "Make one: withstand fit-attack knn_block MODEL --out DIR.")
        check_weights(kl_weight=self.kl_weight, ce_weight=self.ce_weight)

    @property
    def reads(self) -> tuple[str, ...]:
        layers = range(len(loaded(self.block).sizes))
        return ("logits", *(f"ballots.{i}" for i in layers), *(f">features.{i}" for i in layers))

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        layers = range(len(loaded(self.block).sizes))
        return {"votes": torch.stack([clean.features[f"ballots.{i}"] for i in layers], 1)}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        block, votes = loaded(self.block).to(seen.input.device), state["votes"]
        told = block([seen.features[f">features.{i}"] for i in range(len(block.sizes))])
        told = told.flip(1) if self.variant == "published" else told
        value = ce_weight_of(self.ce_weight, votes) * disagreement(told, votes)
        return (value + self.kl_weight * divergence(told, votes)).sum(1)


@component("attack", "advknn", systems=("advknn",))
class AdvKNN(Attack):
    """Gradients for a kNN classifier, of a block that has learned to tell its votes.

    Sign steps (BIM) on `away_from_votes`, from the clean point; whether a point counts is decided by the real votes, never
    by the block. With steps=1, step=1.0 it is FGSM. Labels only tell what counts as wrong.

    block: what `knn_block` fitted to the attacked classifier, or "artefact:FOLDER". step: as a share of eps. kl_weight,
    ce_weight: see `away_from_votes`; kl_weight=0 is the attack without consistency learning, and the stronger one where
    the block is surer than the votes are: away from their shares is surer still. The released code averages
    the divergence over the classes as well (kl_weight=1/C), leaves it out of FGSM on one layer (kl_weight=0), and with
    several layers pairs the votes of the first with the block of the last (variant="published").

    Reference: Li, Chen, He, Xue, "AdvKnn: Adversarial Attacks On K-Nearest Neighbor Classifiers With Approximate
    Gradients", 2019, arXiv 1911.06591; radius, steps and weights as in the official code.
    """

    threat: ThreatField = Linf(0.25)
    block: BlockField = None
    steps: int = 100
    step: float = 0.04
    random_start: Annotated[bool | float, PlainValidator(start_of)] = False
    kl_weight: float = 1.0
    ce_weight: float | None = None
    variant: Literal["correct", "published"] = "correct"

    access = "features"

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        check_weights(kl_weight=self.kl_weight, ce_weight=self.ce_weight)
        self._steps()

    def refuse(self, model: Any, x: Tensor) -> None:
        knn, block = knn_of(model), loaded(AwayFromVotes(self.block).block)
        if block.classes != knn.classes or block.sizes.tolist() != knn.sizes:
            got = f"a block of {block.extra_repr()}"
            allowed = ", ".join(f"{d} -> {knn.classes}" for d in knn.sizes)
            raise bad("block", got, f"one of {allowed}, fitted to this classifier")

    def problem(self, **settings: Any) -> Problem:
        self.refuse(settings["model"], settings["x"])
        objective = AwayFromVotes(self.block, self.kl_weight, self.ce_weight, self.variant)
        return super().problem(**{"objective": objective, **settings})

    def search(self, p: Problem) -> Point:
        return self._steps().search(p)

    def _steps(self) -> PGD:
        return PGD(
            self.threat, self.steps, self.step, self.random_start, keep=self.keep, active=self.active, mode=self.mode
        )
