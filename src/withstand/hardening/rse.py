"""Random self-ensemble: noise inside the network, and predictions averaged over it."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.hardening.terms import say_accuracy
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows
from withstand.registry import component
from withstand.training.recipe import Recipe, Step, System

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@component("recipe", "rse", systems=("classic_attacks",))
class RSE(Recipe):
    """Random self-ensemble: Gaussian noise before the convolutions, in training and in use, where passes are averaged.

    min E[CE(f_e(x), y)], e new for every example and epoch; in use, log of the mean of softmax(f_e(x)) over `draws` passes.

    first: std of the noise on the input, in units of [0, 1]. inner: std before every convolution but the first, in units of
    its input. draws: passes per prediction, each of which costs one forward pass. fresh: what is shipped draws its noise
    anew in every call; False: the same in every call. What is shipped is an `Ensemble`, not the given architecture.

    Reference: Liu, Cheng, Zhang, Hsieh, "Towards Robust Neural Networks via Random Self-ensemble", 2018, arXiv 1712.00673.
    """

    wraps: ClassVar[bool] = True

    first: float = 0.2
    inner: float = 0.1
    draws: int = 10
    fresh: bool = False

    def __post_init__(self) -> None:
        for name, std in (("first", self.first), ("inner", self.inner)):
            if not 0 <= std < math.inf:
                raise bad(name, std, "a finite standard deviation >= 0")
        if self.draws < 1:
            raise bad("draws", self.draws, "a whole number >= 1")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        if not any(isinstance(m, CONVOLUTIONS) for m in model.modules()):
            raise bad("model", type(model).__name__, "a network with convolutions", "Noise goes before each of them.")
        return System(self.deploy(copy.deepcopy(model), data.space))

    def deploy(self, model: nn.Module, space: Space) -> nn.Module:
        return Ensemble(model, self.first, self.inner, self.draws, fresh=self.fresh)

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        generator = step.generator("rse", batch.x.device)  # many times faster than draws per example
        logits = system.model.noisy(
            batch.x, lambda v, _: torch.randn(v.shape, generator=generator, out=torch.empty_like(v))
        )
        say_accuracy(step, batch.y, noisy=logits)
        return step.cross_entropy(logits, batch.y)  # type: ignore[arg-type]


class Ensemble(nn.Module):
    """log of the mean softmax of a network over passes with noise, [N, K]; differentiable, so attacks average gradients.

    By default the noise of pass i is the same in every call and for every example: the model is a function, and its
    gradient is the exact one of what it says; attacks are then judged on the draws that they saw. fresh = True draws anew
    in every call, as a randomised defence does in use: the trust indicators then call it non-deterministic, and attacks
    need `eot` views and repeated evaluation of what they return.
    """

    def __init__(
        self, model: nn.Module, first: float, inner: float, draws: int, seed: int = 0, fresh: bool = False
    ) -> None:
        super().__init__()
        self.model, self.first, self.inner, self.draws, self.seed = model, first, inner, draws, seed
        self.fresh, self.calls = fresh, 0

    def forward(self, x: Tensor) -> Tensor:
        begin = self.calls * self.draws if self.fresh else 0
        self.calls += self.fresh
        same = Rows(self.seed, torch.zeros(1, dtype=torch.long, device=x.device))
        passes = [self.noisy(x, per_example(same, begin + i)).log_softmax(1) for i in range(self.draws)]
        return torch.stack(passes).logsumexp(0) - math.log(self.draws)

    def noisy(self, x: Tensor, noise: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The logits of one pass. noise: standard normal, of the shape of a value or one that all examples share, from the
        value and the number of its layer."""
        layer = 0

        def add(value: Tensor, std: float) -> Tensor:
            nonlocal layer
            layer += 1
            if std == 0:
                return value
            return value + std * noise(value, layer)

        seen = 0

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            nonlocal seen
            seen += 1
            return None if seen == 1 else (add(inputs[0], self.inner), *inputs[1:])

        with _hooked(self.model, before):
            return self.model(add(x, self.first))


def per_example(rows: Rows, step: int) -> Callable[[Tensor, int], Tensor]:
    """Noise of a pass that depends on the example alone; one row for all examples, or one for each."""
    return lambda value, layer: rows.normal(tuple(value.shape[1:]), f"rse {layer}", step, dtype=value.dtype)


@contextmanager
def _hooked(model: nn.Module, before: Callable[..., Any]) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(before) for m in model.modules() if isinstance(m, CONVOLUTIONS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
