"""J-SIGR beside its two penalties alone, on scikit-learn's digits with a small CNN without batch norm.

The paper's formulas and numbers were not at hand (see the recipe). Transferred examples are FGSM and PGD of Linf 0.2 made on
a multilayer perceptron and on another CNN, both trained plainly on the same examples; the saliency share is the part of the
squared input gradient's energy inside the fifth of the pixels that a perturbation map calls most important.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import FGSM, PGD
from withstand.data import load_data
from withstand.hardening.harden import harden
from withstand.hardening.jsigr import perturbation_saliency, saliency_gradient
from withstand.hardening.standard import Standard
from withstand.protocols import Claim
from withstand.random import derive
from withstand.reproductions.arms import Arm, digits_scales, fresh, measure_arms, right, row
from withstand.threats import Linf
from withstand.training import Adam, Trainer

SYSTEM = "jsigr"
SCALES = digits_scales(
    network="digits_cnn", optimizer="adam(3e-3)", batch=64, eps=0.1, attack="pgd(linf(0.1), steps=5)"
)
EPS, TOP = 0.2, 0.2
ARMS = {
    "standard": Arm("standard"),
    "gradient_alone": Arm("jsigr(jacobian_weight=0.0, selective_weight=1.0, mask=0.001)"),
    "jacobian_alone": Arm("jsigr(jacobian_weight=0.01, selective_weight=0.0)"),
    "jsigr_without_mask": Arm("jsigr(jacobian_weight=0.01, selective_weight=1.0, mask=0.001)"),
    "jsigr": Arm("jsigr(jacobian_weight=0.01, selective_weight=1.0)"),
    "pgd_at": Arm("pgd_at(attack={attack})"),
}

_ABSTRACT = "Liu et al., 2022, arXiv 2207.13036, abstract"


def _claim(statement: str, first: str, last: str, metric: str, direction: Any = "higher") -> Claim:
    return Claim(statement, _ABSTRACT, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim(
        "J-SIGR withstands transferred attacks better than plain training", "standard", "jsigr", "transfer_accuracy"
    ),
    _claim("... better than the Jacobian penalty alone", "jacobian_alone", "jsigr", "transfer_accuracy"),
    _claim("... better than the gradient penalty alone", "gradient_alone", "jsigr", "transfer_accuracy"),
    _claim("Its input gradients lie where the prediction depends on the image", "standard", "jsigr", "saliency_share"),
    _claim("... more than without the mask", "jsigr_without_mask", "jsigr", "saliency_share"),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the sources of transferred examples, then the arms, and judge them; see the package for the rows."""
    s = SCALES[scale]
    sources = _sources(s["train"], s["epochs"], seed)

    @cache
    def transferred(n: int) -> list[Tensor]:
        batch = load_data("digits", split="test", limit=n, seed=0).batch(range(n))
        made = []
        for source in sources:
            for attack in (FGSM(Linf(EPS)), PGD(Linf(EPS), steps=10, keep="last", active=False)):
                made.append(attack(source, batch.x, batch.y, seed=derive(seed, "transfer")))
        return made

    def more(name: str, hardened: Any, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
        model = hardened.module.eval()
        stands = torch.stack([right(model, z, y) for z in transferred(len(x))]).all(0)
        share = saliency_share(model, x, y)
        return [
            row(name, "transfer_accuracy", stands & right(model, x, y)),
            {"arm": name, "metric": "saliency_share", "examples": [round(v, 4) for v in share.tolist()]},
        ]

    return measure_arms(ARMS, s, seed, progress, more)


def saliency_share(model: nn.Module, x: Tensor, y: Tensor, cell: int = 2) -> Tensor:
    """The share of the squared input gradient of the label's logit inside the `TOP` share of pixels that the perturbation
    map ranks highest, [N]."""
    mask = perturbation_saliency(model, x, cell).flatten(1)
    energy = saliency_gradient(model, x, y).square().sum(1).flatten(1)
    chosen = mask.topk(round(TOP * mask.shape[1]), dim=1).indices
    return energy.gather(1, chosen).sum(1) / energy.sum(1).clamp_min(1e-20)


def _sources(examples: int, epochs: int, seed: int) -> list[nn.Module]:
    data = load_data("digits", split="train", limit=examples, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "source") & 0x7FFFFFFF)
        perceptron = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    networks = [perceptron, fresh("digits_cnn", 10, derive(seed, "source"))]
    trainer = Trainer(epochs=epochs, batch=64, optimizer=Adam(3e-3), schedule="cosine", accelerator="cpu")
    return [
        harden(net, data, Standard(), trainer=trainer, validation=None, seed=seed).module.eval() for net in networks
    ]
