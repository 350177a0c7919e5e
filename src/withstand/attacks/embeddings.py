"""Objectives for models that return embeddings: what an attacker of a search by similarity increases.

None of them has a goal that is reached or not: an embedding has no class. Every example stays in the batch, and
`keep="best"` keeps the point of the largest value. f(z) is the model's output (unit vectors where the model makes them
so), f(x) its output for the clean input.
"""

import torch
from torch import Tensor

from withstand.errors import bad
from withstand.objectives import State
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import component

_TINY = 1e-12  # under the root, whose slope at 0 is infinite


class _Features:
    reads = ("logits",)
    coupled = False
    criterion = None
    classifies = False


@component("objective", "push_away", systems=("mdprop",))
class PushAway(_Features):
    """Away from the own clean embedding: |f(z) - f(x)|^2, which is 2 - 2 cos of unit vectors. Needs no labels.

    The gradient at the clean point is zero: the search must begin elsewhere (`random_start` of pgd, as it is by default).
    """

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        return {"own": clean.logits}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return (seen.logits - state["own"]).square().sum(1)


@component("objective", "multi_target", systems=("mdprop",))
class MultiTarget(_Features):
    """Towards the clean embeddings of several examples of the batch at once: -(1/T) sum_q |f(z_i) - f(x_{pi_q(i)})|.

    pi_1..pi_T: permutations of the batch, drawn anew for each run. A target may be of the same class, or the example
    itself. With T > 1 the pull is towards the median of the targets, into crowded regions of the space. The published
    attack descends the square of the mean of these distances over the batch: for signs of gradients that is the same.
    targets: T.

    Which examples are drawn for one depends on the batch that it comes in, not on their order.

    Reference: Singh, Kakizaki, Araki, "Advancing Deep Metric Learning With Adversarial Robustness", ACML 2023,
    arXiv 2211.16253.
    """

    targets: int = 5

    coupled = True

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise bad("targets", self.targets, "a whole number >= 1")

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        order = rows.bits((self.targets,), "multi_target order").argsort(0)
        place = rows.bits((self.targets,), "multi_target place").argsort(0).argsort(0)
        return {"targets": clean.logits[order.gather(0, place)]}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        far = (seen.logits[:, None] - state["targets"]).square().sum(2)
        return -(far + _TINY).sqrt().mean(1)


@component("objective", "towards_own_class", systems=("mdprop",))
class TowardsOwnClass(_Features):
    """Towards the mean of the clean embeddings of the own class in the batch, as a unit vector: f(z) . mean.

    Makes examples that are easier to tell ("unadversarial"), no attack. Needs labels.
    """

    coupled = True

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        if y.dim() != 1 or int(y.min()) < 0:
            raise bad("y", "no labels" if y.dim() == 1 else f"labels {tuple(y.shape)}", "class indices [N]")
        same = (y[:, None] == y).to(clean.logits.dtype)
        return {"mean": torch.nn.functional.normalize(same @ clean.logits)}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return (seen.logits * state["mean"]).sum(1)
