"""The defences of the review against its attacks: one small CNN per defence, trained on the same digits for as long.

Random self-ensemble and randomised smoothing are deployed as an average of softmax outputs over draws of noise that stay
the same, so that attacks see the very function that they are judged on; what fresh draws change is measured beside it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.audit.checks.detection import Detection
from withstand.data.arrays import from_arrays
from withstand.hardening.harden import harden
from withstand.hardening.rse import Ensemble, per_example
from withstand.hardening.smoothing import certify
from withstand.models import as_target
from withstand.protocols import Batch, Context
from withstand.random import Rows, derive
from withstand.reproductions.arms import fresh, row
from withstand.reproductions.attack_table import bits, fixed, nearest
from withstand.threats import Linf
from withstand.training import Adam, Trainer

ATTACK = "pgd(linf(0.15), steps=7)"
SIGMA = 0.25
RECIPES = {
    "trades": f"trades(attack={ATTACK})",
    "rse": "rse(first=0.2, inner=0.1)",
    "smoothing": f"gaussian_noise({SIGMA})",
    "distillation": "distillation(100)",
    "er_cla": f"er_cla(attack={ATTACK}, codes=4)",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "distillation": {"times": 2, "lr": 5e-3},
    "er_cla": {"schedule": "cosine"},
}
"""Where a defence differs: one trains two networks in turn, with smaller gradients; one needs a rate that falls."""
RADIUS = 0.25
"""L2, at which certificates are counted."""

DETECTORS = ("kernel_density", "lid", "mahalanobis", "odds")
KNOWN = "knows the detector"
STEPS = 40
"""Of the attack that knows a detector."""

_BYPASSED = "Carlini, Wagner, Adversarial Examples Are Not Easily Detected, 2017, arXiv 1705.07263"
_EMBEDDING = "Li et al., Towards Robustness of Deep Neural Networks via Regularization, 2021, arXiv 1811.07950"
_RSE = "Liu et al., Random Self-ensemble, 2018, arXiv 1712.00673"
_DISTILLATION = "Papernot et al., Distillation as a Defense, 2016, arXiv 1511.04508"
_BROKEN = "Carlini, Wagner, 2017, arXiv 1608.04644, on defensive distillation"
_SMOOTHING = "Cohen, Rosenfeld, Kolter, 2019, arXiv 1902.02918"
_EOT = "Athalye et al., Synthesizing Robust Adversarial Examples, 2018, arXiv 1707.07397"

CLAIMS: list[tuple[str, str, tuple[str, str], str, Any]] = [
    (
        "TRADES raises robust accuracy",
        "Zhang et al., TRADES, 2019, arXiv 1901.08573",
        ("natural / apgd_ce_t", "trades / apgd_ce_t"),
        "robust_accuracy",
        "higher",
    ),
    (
        "Random self-ensemble raises robust accuracy",
        _RSE,
        ("natural / apgd_ce_t", "rse / apgd_ce_t"),
        "robust_accuracy",
        "higher",
    ),
    (
        "An attack that averages over a random ensemble's noise breaks more of its fresh draws than one that saw one draw",
        _EOT,
        ("rse / pgd_one_draw", "rse / pgd_averaged"),
        "accuracy_of_fresh_draws",
        "lower",
    ),
    (
        "Training with noise raises the share of images certified at L2 0.25",
        _SMOOTHING,
        ("natural / smoothed", "smoothing / smoothed"),
        "certified_accuracy",
        "higher",
    ),
    (
        "Distillation keeps images from fifty steps of PGD on the cross-entropy",
        _DISTILLATION,
        ("natural / pgd_ce_50", "distillation / pgd_ce_50"),
        "robust_accuracy",
        "higher",
    ),
    (
        "... which an attack on margins breaks",
        _BROKEN,
        ("distillation / pgd_ce_50", "distillation / cw_pgd_50"),
        "robust_accuracy",
        "lower",
    ),
    (
        "An embedding-regularised classifier raises robust accuracy",
        _EMBEDDING,
        ("natural / apgd_ce_t", "er_cla / apgd_ce_t"),
        "robust_accuracy",
        "higher",
    ),
    (
        "... more than adversarial training without the regulariser",
        _EMBEDDING,
        ("at / apgd_ce_t", "er_cla / apgd_ce_t"),
        "robust_accuracy",
        "higher",
    ),
    *(
        (
            f"{title} flags adversarial images of PGD more often than clean ones",
            source,
            (f"{name} / clean", f"{name} / pgd"),
            "flagged",
            "higher",
        )
        for name, title, source in (
            ("kernel_density", "Kernel density", "Feinman et al., 2017, arXiv 1703.00410"),
            ("lid", "Local intrinsic dimensionality", "Ma et al., 2018, arXiv 1801.02613"),
            ("mahalanobis", "The Mahalanobis distance", "Lee et al., 2018, arXiv 1807.03888"),
            ("odds", "Odds under noise", "Roth et al., 2019, arXiv 1902.04818"),
        )
    ),
    *(
        (
            f"An attack that knows {name} is misclassified without a flag more often than PGD",
            _BYPASSED,
            (f"{name} / pgd", f"{name} / {KNOWN}"),
            "undetected_success",
            "higher",
        )
        for name in DETECTORS
    ),
]


def measure(
    train: tuple[Tensor, Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    s: Mapping[str, Any],
    seed: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rows of every defence; settings as those of the scale."""
    data = from_arrays(*train, name="digits", classes=10)
    few = slice(0, s["nearest"])
    rows = []
    for name, recipe in {"natural": "standard", **RECIPES}.items():
        progress(f"{name}: training")
        module = trained(data, recipe, s["epochs"], seed, **SETTINGS.get(name, {}))
        if name in ("natural", "smoothing"):
            rows.append(_certified(name, module, x, y, s, seed))
        if name == "natural":
            rows += detected(module, data, x, y, eps, seed, progress)
            continue  # attacked with the networks of the first table
        if name == "smoothing":
            module = Ensemble(module, SIGMA, 0.0, s["draws"])
        rows += fixed(name, module.eval(), x, y, eps, s, seed, progress)
        rows += nearest(name, module, x[few], y[few], s, seed, progress)
        if name == "rse":
            rows += _expectation(name, module, x, y, eps, s, seed)
    return rows


def trained(
    data: Any, recipe: str, epochs: int, seed: int, times: int = 1, lr: float = 1e-3, schedule: str = "constant"
) -> nn.Module:
    """A network of the experiment, trained by a recipe."""
    trainer = Trainer(epochs=times * epochs, batch=64, optimizer=Adam(lr), schedule=schedule, accelerator="cpu")
    network = fresh("digits_cnn", 10, seed)
    return harden(network, data, recipe, trainer=trainer, validation=None, seed=seed).model.eval()


def detected(
    module: nn.Module, data: Any, x: Tensor, y: Tensor, eps: float, seed: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """What detectors on a network make of clean images and of attacks: who is flagged, and who is wrong and not flagged."""
    progress("natural: detectors")
    target, context, given = as_target(module), Context(seed=seed), {"train": data}
    check = Detection(Linf(eps), attacks=("pgd(steps=20, keep=last, active=False)",), detectors=DETECTORS, steps=STEPS)
    fitted = check.prepare(target, data, given, context)
    batch = Batch(x, y, torch.arange(len(x)))
    found: dict[tuple[str, str], list[Any]] = {}
    for made in check.rows(target, batch, given, fitted, context):
        found.setdefault((made.condition["detector"], made.condition["attack"]), []).append(made)
    rows = []
    for (detector, attack), part in found.items():
        outcome = torch.tensor([bool(r.outcome) for r in part])
        wrong = torch.tensor([r.prediction != r.label for r in part])
        if attack in ("clean", "noise"):
            rows.append(row(f"{detector} / {attack}", "flagged", ~outcome))
        else:  # outcome: the model is right, or the point is flagged
            rows.append(row(f"{detector} / {attack}", "flagged", outcome & wrong))
            rows.append(row(f"{detector} / {attack}", "undetected_success", ~outcome))
    return rows


def _certified(name: str, module: nn.Module, x: Tensor, y: Tensor, s: Mapping[str, Any], seed: int) -> dict[str, Any]:
    found = certify(module, x, SIGMA, n=s["certify"], seed=seed)
    holds = (found.prediction == y) & (found.radius >= RADIUS)
    return {"arm": f"{name} / smoothed", "metric": "certified_accuracy", "examples": bits(holds)}


def _expectation(
    name: str, ensemble: Any, x: Tensor, y: Tensor, eps: float, s: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """How often fresh draws of the ensemble's noise are right where an attack saw one draw, or the average of many."""
    rows = []
    for label, draws in (("pgd_one_draw", 1), ("pgd_averaged", ensemble.draws)):
        seen = Ensemble(ensemble.model, ensemble.first, ensemble.inner, draws, seed=derive(seed, "seen")).eval()
        z = PGD(Linf(eps), steps=50, step=0.1, keep="last", active=False)(seen, x, y, seed=seed)
        each = Rows(derive(seed, "fresh"), torch.arange(len(x)))
        with torch.no_grad():
            hits = [ensemble.noisy(z, per_example(each, step)).argmax(1) == y for step in range(s["draws"])]
        share = torch.stack(hits).float().mean(0)
        examples = [round(v, 4) for v in share.tolist()]
        rows.append({"arm": f"{name} / {label}", "metric": "accuracy_of_fresh_draws", "examples": examples})
    return rows
