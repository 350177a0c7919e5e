"""How much the prediction moves when dropout is left on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.protocols import Target
from withstand.random import Rows
from withstand.registry import component


@component("detector", "dropout_variance", systems=("classic_attacks",))
class DropoutVariance:
    """Uncertainty by dropout: the variance of the probabilities over passes with dropout on, summed over classes.

    U(x) = 1/T sum_t p_t^T p_t - (1/T sum_t p_t)^T (1/T sum_t p_t). Masks come from the example's identity, so that a score
    does not depend on the batch. Only dropout modules of a positive rate are seen, not calls of the function.

    samples: T, passes of each example.

    Reference: Feinman, Curtin, Shintre, Gardner, "Detecting Adversarial Samples from Artifacts", 2017, arXiv 1703.00410.
    """

    samples: int = 50

    taps = ("logits",)
    needs_input = True

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise bad("samples", self.samples, "a whole number >= 2")

    def accept(self, target: Target) -> None:
        """Raises: BadInput for a model without dropout."""
        if target.module is None or not dropouts(target.module):
            raise bad(
                "dropout_variance",
                f"{target.name}, which has no dropout modules",
                "a torch model with nn.Dropout of a rate > 0",
                "Take kernel_density, lid, mahalanobis or odds.",
            )

    def look(self, target: Target, x: Tensor, rows: Rows) -> dict[str, Tensor]:
        """{"dropped": [N, T, K]}: the probabilities of each pass."""
        assert target.module is not None
        parts = dropouts(target.module)
        passes = []
        for sample in range(self.samples):
            with _dropping(parts, rows, sample):
                passes.append(target(x).double().softmax(1))
        return {"dropped": torch.stack(passes, 1)}

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        return {}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        return features["dropped"].var(1, correction=0).sum(1)


def dropouts(module: nn.Module) -> dict[str, Any]:
    """The dropout modules with a rate above 0, by name."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    return {name: part for name, part in module.named_modules() if isinstance(part, kinds) and part.p > 0}


@contextmanager
def _dropping(parts: Mapping[str, Any], rows: Rows, sample: int) -> Iterator[None]:
    """Have the modules, in eval mode, return their input times a mask that is drawn for each example."""
    handles = []
    for name, part in parts.items():
        calls: list[None] = []

        def mask(part: Any, _: Any, h: Tensor, stream: str = f"dropout {name}", calls: list[None] = calls) -> Tensor:
            if len(h) % len(rows):
                raise bad(
                    "model", f"dropout on {tuple(h.shape)}", f"dropout on {len(rows)} examples, one after another"
                )
            whole = h.shape[1:] if isinstance(part, nn.Dropout) else (h.shape[1], *[1] * (h.dim() - 2))
            u = rows.uniform((len(h) // len(rows), *whole), f"{stream} {len(calls)}", sample)
            calls.append(None)
            return h * (u.flatten(0, 1) >= part.p) / max(1 - part.p, 1e-12)

        handles.append(part.register_forward_hook(mask))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
