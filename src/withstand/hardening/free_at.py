"""Free adversarial training: one backward pass serves the weights and the perturbation."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks.pgd import needs_fixed_set
from withstand.errors import bad
from withstand.hardening.terms import say_accuracy
from withstand.protocols import Batch, Dataset, Update
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf, Threat, ThreatField, clip, per_row
from withstand.training.recipe import Recipe, Step, System


@component("recipe", "free_at")
class FreeAT(Recipe):
    """Adversarial training that replays every batch and moves weights and perturbation by the same backward pass.

    Repeated `replays` times for a batch, in train mode: g_w, g_x = gradients of CE(f(clip(x + d)), y);
    w <- optimiser(w, g_w), d <- P(d + eps * steepest(g_x)).

    threat: the ball of d. replays: the paper's m; as each is an update, train for 1/m of the epochs. d begins at zero, row i
    belongs to the i-th example of a batch, and is carried over to the next batch. Several processes carry one each, and all
    go on with the first one's after a resume. The gradient is taken at the clipped input, so that values that stand at the
    border can leave it. A batch cannot be cut into parts (accumulate=1 only).

    Reference: Shafahi et al., "Adversarial Training for Free!", 2019, arXiv 1904.12843.
    """

    threat: ThreatField = Linf(8 / 255)
    replays: int = 8

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        if self.replays < 1:
            raise bad("replays", self.replays, "a whole number >= 1")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = super().setup(model, data, rows)
        return System(system.model, carried=Carried())

    def optimizers(self, system: Any, main: Any) -> dict[str, torch.optim.Optimizer]:
        return {"main": main(system.model.parameters())}

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        carried = system.carried.shaped(batch.x)
        for _ in range(self.replays):
            point = clip(batch.x + carried.delta, step.box).detach().requires_grad_(True)
            yield Update(partial(self._loss, system, point, batch.y, step))
            carried.climb(point.grad, self.threat)

    def _loss(self, system: Any, point: Tensor, y: Any, step: Step) -> Tensor:
        adversarial = system(point)
        say_accuracy(step, y, adversarial=adversarial)
        return step.cross_entropy(adversarial, y)


class Carried(nn.Module):
    """The perturbation that goes from batch to batch; it takes its shape from the first batch, or from a checkpoint."""

    delta: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("delta", torch.zeros(0))

    def shaped(self, x: Tensor) -> "Carried":
        """Ready for inputs such as x: what is carried where the shape is the same, else zeros."""
        if self.delta.shape != x.shape:
            self.delta = torch.zeros_like(x)
        return self

    @torch.no_grad()
    def climb(self, gradient: Tensor, threat: Threat) -> None:
        """One full steepest step, projected back into the ball."""
        gradient = torch.nan_to_num(gradient)  # an overflow of half precision must not be carried on
        origin = torch.zeros_like(gradient)
        ball: Any = threat
        length = per_row(ball.scale(origin), gradient)
        self.delta = ball.project(self.delta + length * ball.steepest(gradient), origin, None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}delta" in state_dict:
            self.delta = torch.empty_like(state_dict[f"{prefix}delta"], device=self.delta.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
