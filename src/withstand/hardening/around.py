"""What wrappers of a whole recipe share: the recipe within, its gradient, and weights that are moved for a while."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.errors import bad
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows
from withstand.registry import coerce
from withstand.training.recipe import Recipe, Step, with_grad

Shifts = Sequence[tuple[nn.Parameter, Tensor]]


def _single(value: Any) -> Any:
    value = coerce("recipe")(value)
    if not isinstance(value, Recipe):
        raise bad("recipe", repr(value), "a recipe or its text, e.g. 'pgd_at'")
    if type(value).updates is not Recipe.updates:
        raise bad("recipe", repr(value), "a recipe that makes one update of each batch, from one loss")
    return value


SingleField = Annotated[Any, PlainValidator(_single)]
"""The type of a field that holds a recipe with one update per batch; accepts its text as well."""


class Around(Recipe):
    """All stages but the update are those of `self.recipe`."""

    shards: ClassVar[bool] = False

    @property
    def task(self) -> str:  # type: ignore[override]
        return self._within.task

    @property
    def selects_on(self) -> tuple[str, str] | None:  # type: ignore[override]
        return self._within.selects_on

    @property
    def defaults(self) -> Mapping[str, Any]:  # type: ignore[override]
        return self._within.defaults

    def examples(self, model: nn.Module, data: Dataset, seed: int) -> Dataset:
        return self._within.examples(model, data, seed)

    def validate(self, *given: Any, **named: Any) -> dict[str, float]:
        return self._within.validate(*given, **named)

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        return self._within.setup(model, data, rows)

    def optimizers(self, system: Any, main: Callable[[Any], torch.optim.Optimizer]) -> dict[str, torch.optim.Optimizer]:
        return self._within.optimizers(system, main)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        return self._within.craft(system, batch, step)

    def deploy(self, model: nn.Module, space: Space) -> nn.Module:
        return self._within.deploy(model, space)

    def finish(self, system: Any) -> nn.Module:
        return self._within.finish(system)

    @property
    def _within(self) -> Recipe:
        return self.recipe  # type: ignore[attr-defined]

    def gradient(self, system: Any, batch: Batch, step: Step) -> list[tuple[nn.Parameter, Tensor]]:
        """The gradient of the recipe's loss, the same on all processes. Random draws of the model (dropout) fall anew in
        the pass that follows as they fell here."""
        parameters = list(with_grad(system).values())
        device = parameters[0].device
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            loss = self._within.loss(system, batch, step)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = [(p, g.contiguous()) for p, g in zip(parameters, found) if g is not None]
        step.mean([g for _, g in pairs])
        return pairs


@torch.no_grad()
def move(shifts: Shifts) -> None:
    """Add the shifts to the parameters."""
    for p, v in shifts:
        p.add_(v)
    torch.clear_autocast_cache()  # it would go on with the weights of before


@contextmanager
def moved(shifts: Shifts) -> Iterator[None]:
    """The parameters are shifted within the block, and bit for bit their own again afterwards."""
    own = [p.detach().clone() for p, _ in shifts]
    move(shifts)
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, _), w in zip(shifts, own):
                p.copy_(w)
