"""What a recipe is built from: the system that it trains, the context of a step, and the defaults of every stage."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.protocols import Batch, Dataset, Space, Update
from withstand.random import Rows, derive
from withstand.registry import replace
from withstand.training.validate import validate

Optimizers = dict[str, torch.optim.Optimizer]
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


class System(nn.Module):
    """Everything that training changes: the model, and beside it whatever heads, discriminators or banks a recipe adds.

    >>> System(model, domain=nn.Linear(64, 2)).domain
    """

    def __init__(self, model: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        self.model = model
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@dataclass
class Step:
    """What a recipe may know of the step that it serves.

    step of steps: updates of the main optimiser made so far, and in all. epoch of epochs. seed: of the training. rows:
    draws per example of this batch, new in every epoch. rank of world: which process this is. box: the range of inputs.
    smoothing: of the labels, for the loss that is learned from. averaged: a pass of the system with its averaged weights
    (and batch statistics), in eval mode and without gradient; None where the trainer keeps no average, or a spread one.
    said: what the recipe wants logged, summed until the epoch's end.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    seed: int
    rows: Rows
    rank: int = 0
    world: int = 1
    box: tuple[float, float] | None = (0.0, 1.0)
    smoothing: float = 0.0
    averaged: Callable[[Tensor], Tensor] | None = None
    said: dict[str, Tensor] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1)."""
        return self.step / self.steps

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy of labels long [N] or float [N, K], smoothed as the trainer was told."""
        return F.cross_entropy(logits, y, label_smoothing=self.smoothing)

    def say(self, name: str, value: Tensor | float) -> None:
        """Log a number of this step; the history shows its mean over the epoch."""
        self.said[name] = torch.as_tensor(value).detach()

    def generator(self, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for draws of the whole batch, another one in each step and on each rank."""
        return torch.Generator(device).manual_seed(derive(self.seed, stream, self.step, self.rank))

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors averaged over all processes, in place; what every rank must agree on passes through here."""
        if self.world > 1:
            flat = torch.cat([t.flatten() for t in tensors])
            dist.all_reduce(flat)
            for t, part in zip(tensors, (flat / self.world).split([t.numel() for t in tensors])):
                t.copy_(part.view_as(t))
        return tensors

    def attack(self, attack: Any, model: nn.Module, x: Tensor, y: Tensor | None, stream: str = "attack") -> Tensor:
        """The attack's last iterates for a batch, detached; its draws depend on the examples and the epoch.

        Whatever the attack's own settings say, nothing is judged and no example leaves the batch.
        """
        inner = replace(attack, keep="last", active=False)
        seed = derive(self.rows.seed, stream)
        return inner(model, x, y, seed=seed, ids=self.rows.ids, block=len(x), box=self.box).detach()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all recipes share; a method overrides the stages in which it differs from plain training.

    The trainer calls `setup` once, `optimizers` once, then for every batch `craft` and each of `updates`, and at the end
    (and before every validation, on a copy) `finish`. Nothing that changes may live in the recipe: it belongs in the system.
    """

    verb: ClassVar[str] = "harden"
    """The command that runs it: "harden", or "fit-attack" for what an attack has to train first."""
    ships: ClassVar[str] = "model"
    """What `finish` returns: a "model" of the given architecture, or a part that `deploy` builds from nothing but the
    recipe and the space, named by a word such as "generator"; parts are not validated."""
    labelled: ClassVar[bool] = True
    """Whether the examples' labels are used, which the model must then share."""
    learned: ClassVar[bool] = False
    """Whether the model that it is given has to be trained already."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the trainer that it needs or its paper took, by name, which hold where nothing else is said."""
    wraps: ClassVar[bool] = False
    """Whether what is shipped is not of the given architecture but what `deploy` builds around it."""
    shards: ClassVar[bool] = True
    """Whether it can do with weights that are spread over processes, whose gradients no process sees as a whole."""
    task: ClassVar[str] = "classification"
    """What the model that is shipped does: "classification" (logits), "embedding" (unit vectors [N, d]) or "hashing"
    (values in (-1, 1) [N, K], whose signs are the code)."""
    selects_on: ClassVar[tuple[str, str] | None] = ("accuracy", "robust_accuracy")
    """The measure of the validation by which the best epoch is chosen, without and with an attack that judges; None: the
    last epoch is what counts, whatever the validation shows."""

    @property
    def may_lose(self) -> float | None:
        """None: the best epoch by validation is kept. A share: the last one whose clean accuracy on the validation
        examples lies no more than this below that of the model given; the training ends with the first beyond. For what
        trades accuracy for something that validation does not see."""
        return None

    def examples(self, model: nn.Module, data: Dataset, seed: int) -> Dataset:
        """The examples that are learned from, made of those that are given (pseudo-labels, say); called before `setup`."""
        return data

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        """A system with a copy of the model. rows: draws for whatever has to be initialised."""
        return System(copy.deepcopy(model))

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        """Named optimisers; "main" is made by `main`, which the trainer was given, and follows the schedule."""
        return {"main": main(system.parameters())}

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        """The batch that is learned from. The system is in train mode; gradients are on, and passes without them say so."""
        return batch

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        """What a recipe with a single update minimises."""
        raise NotImplementedError(f"{type(self).__name__} defines neither loss nor updates")

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        """The updates of one step, in order. What stands after a `yield` runs when its update has been made."""
        yield Update(lambda: self.loss(system, batch, step))

    def deploy(self, model: Any, space: Space) -> nn.Module:
        """What is shipped, around a model of the given architecture (which it may take apart), for trained weights to be
        loaded into: this is how `artefact:FOLDER` finds its way back. space: of the inputs and classes. A recipe that ships
        a part gets None for the model.

        Raises: BadInput for a recipe that ships something else and does not say what.
        """
        if self.wraps or model is None:
            mend = "Define deploy(model, space), which builds what finish() returns."
            raise bad("recipe", repr(self), "one that tells how what it ships is built", mend)
        return model

    def validate(
        self,
        model: nn.Module,
        data: Dataset,
        attack: Any,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world: int = 1,
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> dict[str, float]:
        """The measures of a validation, those of `selects_on` among them; default the accuracy of a classifier. Each of
        `world` processes takes its share; `total` sums tensors over them."""
        return validate(model, data, attack, device, seed, rank, world, total)

    def remark(self, history: Sequence[Mapping[str, Any]]) -> str:
        """A warning to be given at the end of an epoch, of which the last row of the history tells; "" for none."""
        return ""

    def finish(self, system: Any) -> nn.Module:
        """The model that is shipped; the system may be taken apart for it."""
        return system.model


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that an optimiser moves."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def with_grad(system: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in system.named_parameters() if p.requires_grad}
