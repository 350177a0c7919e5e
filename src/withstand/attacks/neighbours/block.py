"""The deep kNN block: a small network that learns to tell a classifier's votes, and so gives them gradients."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from withstand.attacks.fit import load_fitted
from withstand.errors import bad
from withstand.models.neighbours import HiddenKNN, identities, knn_of
from withstand.models.state import frozen
from withstand.models.taps import see
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows
from withstand.registry import component
from withstand.training.optimizers import Adam
from withstand.training.recipe import Recipe, Step, System

_BLOCK = 256


@component("recipe", "knn_block", systems=("advknn",))
class FitBlock(Recipe):
    """The deep kNN block: a linear layer for each voting layer of a kNN classifier, which learns to tell its votes.

    q_l = softmax(g_l(f_l(x))) of the flattened activation f_l; the loss is sum_l KL(p_l || q_l) + w CE(q_l, argmax p_l),
    means over the batch, p_l the shares of the votes. The first term is consistency learning; the second alone tells the
    class, and not how sure the votes are. The classifier stays as it is. Labels are not used. Examples that are references
    do not vote for themselves. Made by `fit_attack`, for the attack `advknn`.

    terms: which of the two are learned from. ce_weight: w; None takes 20 for one layer and 0.3 for several, those of the
    released attack (the training of the paper was not released).

    Reference: Li, Chen, He, Xue, "AdvKnn: Adversarial Attacks On K-Nearest Neighbor Classifiers With Approximate
    Gradients", 2019, arXiv 1911.06591.
    """

    terms: Literal["kl+ce", "kl", "ce"] = "kl+ce"
    ce_weight: float | None = None

    verb: ClassVar[str] = "fit-attack"
    ships: ClassVar[str] = "block"
    labelled: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {"batch": 64, "optimizer": Adam(1e-2), "schedule": "cosine"}

    def __post_init__(self) -> None:
        check_weights(ce_weight=self.ce_weight)

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        """Raises: BadInput for a model that is no kNN classifier."""
        knn = knn_of(model)
        block = KNNBlock(knn.classes, knn.sizes)
        start = torch.Generator().manual_seed(rows.seed & ((1 << 63) - 1))
        bound = block.sizes.rsqrt().repeat_interleave(block.sizes)[:, None]
        with torch.no_grad():
            block.weight.copy_((torch.rand(block.weight.shape, generator=start) * 2 - 1) * bound)
        system = System(nn.Identity(), block=block)
        system.__dict__["victim"] = _Aside(copy.deepcopy(knn), data)
        return system

    def optimizers(self, system: Any, main: Any) -> dict[str, torch.optim.Optimizer]:
        return {"main": main(system.block.parameters())}

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        activations, votes = system.victim.look(batch.x)
        extra = {f"activation_{i}": h.flatten(1) for i, h in enumerate(activations)}
        return Batch(batch.x, batch.y, batch.ids, extra={**extra, "votes": votes})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        votes = batch.extra["votes"]
        told = system.block([batch.extra[f"activation_{i}"] for i in range(votes.shape[1])])
        kl, ce = divergence(told, votes).sum(1).mean(), disagreement(told, votes).sum(1).mean()
        step.say("divergence", kl / votes.shape[1])
        step.say("agreement", (told.argmax(2) == votes.argmax(2)).float().mean())
        parts = {"kl": kl, "ce": ce, "kl+ce": kl + ce_weight_of(self.ce_weight, votes) * ce}
        return parts[self.terms]

    def deploy(self, model: Any, space: Space) -> nn.Module:
        if space.classes is None:
            raise bad("classes", "None", "the number of classes, which the block's folder says")
        return KNNBlock(space.classes)

    def finish(self, system: Any) -> nn.Module:
        return system.block


class KNNBlock(nn.Module):
    """Linear layers g_l from flattened activations to logits of C classes, one for each layer.

    weight [sum_l D_l, C], bias [L, C], sizes int64 [L] = D_l. sizes=None: they come with the state dict that is loaded.
    """

    sizes: Tensor

    def __init__(self, classes: int, sizes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.classes = classes
        if sizes is None:
            self.weight, self.bias = UninitializedParameter(), UninitializedParameter()
            self.register_buffer("sizes", UninitializedBuffer(dtype=torch.int64))  # type: ignore[call-arg]
        else:
            self.weight = nn.Parameter(torch.zeros(sum(sizes), classes))
            self.bias = nn.Parameter(torch.zeros(len(sizes), classes))
            self.register_buffer("sizes", torch.tensor(sizes))

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        """Logits [N, L, C], of the activations of each layer [N, ...]."""
        parts = self.weight.split(self.sizes.tolist())
        return torch.stack([h.flatten(1).to(w) @ w for h, w in zip(activations, parts, strict=True)], 1) + self.bias

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("weight", "bias", "sizes"):
            held: Any = getattr(self, name)
            if is_lazy(held) and prefix + name in state_dict:
                held.materialize(state_dict[prefix + name].shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in ("weight", "bias", "sizes"):
            held: Any = getattr(self, name)
            destination[prefix + name] = held if keep_vars or is_lazy(held) else held.detach()

    def extra_repr(self) -> str:
        return "not loaded" if is_lazy(self.sizes) else ", ".join(f"{d} -> {self.classes}" for d in self.sizes.tolist())


def fidelity(block: Any, model: Any, x: Tensor) -> dict[str, float]:
    """How well a block tells the votes on examples x: "agreement", the share of examples and layers whose class is that
    of the votes, and "divergence", the mean of KL(p || q) in nats. References among x do not vote for themselves.
    """
    told, votes = told_and_votes(block, model, x)
    same = told.argmax(2) == votes.argmax(2)
    return {"agreement": float(same.float().mean()), "divergence": float(divergence(told, votes).mean())}


def told_and_votes(block: Any, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block's logits and the shares of the votes, both [N, L, C]; references among x do not vote for themselves."""
    made, knn, parts = loaded(block), knn_of(model), []
    with torch.no_grad(), frozen(knn):
        for part in x.split(_BLOCK):
            activations = _activations(knn, part)
            votes = _votes(knn, activations, part)
            parts.append((made(activations).to(votes.device), votes))
    return torch.cat([t for t, _ in parts]), torch.cat([v for _, v in parts])


def loaded(block: Any) -> KNNBlock:
    """The block of a field: itself, or that of "artefact:FOLDER"."""
    made = load_fitted(block, "block")
    if not isinstance(made, KNNBlock):
        raise bad("block", type(made).__name__, "what the recipe knn_block makes")
    return made


def divergence(told: Tensor, votes: Tensor) -> Tensor:
    """KL(p || softmax(told)) [N, L], of logits and shares [N, L, C]."""
    return (torch.xlogy(votes, votes) - votes * told.log_softmax(2)).sum(2)


def disagreement(told: Tensor, votes: Tensor) -> Tensor:
    """CE(softmax(told), argmax p) [N, L], of logits and shares [N, L, C]."""
    return -told.log_softmax(2).gather(2, votes.argmax(2, keepdim=True)).squeeze(2)


def ce_weight_of(given: float | None, votes: Tensor) -> float:
    """The weight of the cross-entropy: the one given, else the official code's, for votes [N, L, C]."""
    return given if given is not None else 20.0 if votes.shape[1] == 1 else 0.3


def check_weights(**weights: float | None) -> None:
    for name, weight in weights.items():
        if weight is not None and not 0 <= weight < math.inf:
            raise bad(name, weight, "a finite number >= 0")


class _Aside:
    """A classifier that a system looks at: no part of its weights, its checkpoints and its copies.

    Its votes on the examples of the data are found in one pass, always in the same order, before the first step.
    """

    def __init__(self, knn: HiddenKNN, data: Dataset) -> None:
        self.knn, self.data = knn, data
        self.place: dict[int, int] | None = None
        self.votes = torch.empty(0)

    def __deepcopy__(self, memo: Any) -> "_Aside":
        return self

    def look(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """f_l(x) of each layer, and p_l(x) [N, L, C]: those found before, or (of examples that were changed) new ones."""
        knn = self.knn.to(x.device)
        if self.place is None:
            parts, found = [], []
            for i in range(0, len(self.data), _BLOCK):
                part = self.data.batch(range(i, min(i + _BLOCK, len(self.data)))).x
                parts.append(_votes(knn, _activations(knn, part.to(x.device)), part))
                found += identities(part).tolist()
            self.place, self.votes = {c: i for i, c in enumerate(found)}, torch.cat(parts)
        activations, rows = _activations(knn, x), [self.place.get(c) for c in identities(x).tolist()]
        if None in rows:
            return activations, _votes(knn, activations, x)
        return activations, self.votes[rows]  # type: ignore[index]


def _activations(knn: HiddenKNN, x: Tensor) -> list[Tensor]:
    """f_l(x) of each layer."""
    return list(see(knn.backbone, x, *knn.taps)[1:])


def _votes(knn: HiddenKNN, activations: Sequence[Tensor], x: Tensor) -> Tensor:
    """p_l(x), [N, L, C], without the vote of an example for itself."""
    features = [head(h) for head, h in zip(knn.features, activations)]
    return (knn.count(features, knn.positions(x)) / knn.k).transpose(0, 1)
