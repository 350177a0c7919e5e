"""PyramidAT beside pixel-wise and random perturbations, on scikit-learn's digits with a small vision transformer.

The random pyramid is in the table because it gets most of the effect; so is the unmatched form. Low-frequency shifts are
measured one by one: brightness and contrast, which pyramids resemble, and noise, which they do not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from withstand.protocols import Claim
from withstand.reproductions.arms import Arm, cifar_scale, digits_scales, measure_arms, right, row

SYSTEM = "pyramidat"


def _attacks(eps: str, scales: str) -> dict[str, str]:
    """The attack of the method, and those of the arms beside it: random pyramids and single pixels."""
    steps = f"pgd(linf({eps}), steps=3, step=1/3, random_start=False, parameterisation="
    return {
        "attack": f"{steps}pyramid({scales}, (20, 10, 1)))",
        "pixel": f"{steps}pyramid((1,), (1,)))",
        "random": f"pgd(linf({eps}), steps=1, step=1e-6, parameterisation=pyramid({scales}, (20, 10, 1)))",
    }


SCALES = digits_scales(
    network="digits_vit",
    train=600,
    epochs=45,
    batch=20,
    optimizer="adamw(2e-3)",
    eps=0.05,
    **_attacks("0.012", "(4, 2, 1)"),
) | cifar_scale(
    network="vit_ti",
    epochs=30,
    optimizer="adamw(1e-3)",
    schedule="cosine(warmup=0.1)",
    **_attacks("3/255", "(8, 4, 1)"),
)
ARMS = {
    "standard": Arm("standard"),
    "random_pyramid": Arm("pyramidat(attack={random})"),
    "pixel_at": Arm("pyramidat(attack={pixel})"),
    "pyramidat_unmatched": Arm("pyramidat(attack={attack}, matched=False)"),
    "pyramidat": Arm("pyramidat(attack={attack})"),
}

_PAPER = "Herrmann et al., 2022, arXiv 2111.15121, abstract: ImageNet +1.82 clean and more on seven shifted sets"


def _claim(statement: str, first: str, last: str, metric: str, direction: Any = "higher") -> Claim:
    return Claim(statement, _PAPER, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim("PyramidAT raises clean accuracy", "standard", "pyramidat", "accuracy"),
    _claim("It raises accuracy under shifts of brightness and contrast", "standard", "pyramidat", "shift_accuracy"),
    _claim("... more than pixel-wise perturbations", "pixel_at", "pyramidat", "shift_accuracy"),
    _claim("... more than random pyramids", "random_pyramid", "pyramidat", "shift_accuracy"),
    _claim("Matched masks are better than unmatched ones", "pyramidat_unmatched", "pyramidat", "accuracy"),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the arms and judge them; see the package for the rows."""
    return measure_arms(ARMS, SCALES[scale], seed, progress, _shifts)


def _shifts(name: str, hardened: Any, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Accuracy with 0.3 more or less brightness and 0.3 times the contrast, each and in the mean."""
    model = hardened.module.eval()
    mean = x.mean((2, 3), keepdim=True)
    moved = {
        "brighter": (x + 0.3).clamp(0, 1),
        "darker": (x - 0.3).clamp(0, 1),
        "flatter": mean + 0.3 * (x - mean),
    }
    hits = {kind: right(model, z, y) for kind, z in moved.items()}
    rows = [row(name, f"{kind}_accuracy", hit) for kind, hit in hits.items()]
    share = torch.stack(list(hits.values())).float().mean(0)
    return [*rows, {"arm": name, "metric": "shift_accuracy", "examples": [round(v, 4) for v in share.tolist()]}]
