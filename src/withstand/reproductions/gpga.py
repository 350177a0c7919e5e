"""The guided attack beside plain ones, on networks whose training bends the loss: label smoothing, single-step examples.

A reconstruction from the paper's abstract: the claims are the abstract's, the numbers are this experiment's. The guide is
adversarially trained with hard labels from another seed; every target learns from the same digits for as long.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import FGSM, GPGA, PGD, Attack, AutoAttack
from withstand.audit.checks.guided import Guided
from withstand.data import load_data
from withstand.protocols import Claim
from withstand.random import derive
from withstand.registry import replace
from withstand.reproductions.arms import fresh, right, row
from withstand.reproductions.classic_attacks import digits, network
from withstand.threats import Linf
from withstand.training.basic import fit

SYSTEM = "gpga"

EPS = 0.15
_AT = PGD(Linf(EPS), steps=5)
TARGETS: dict[str, dict[str, Any]] = {
    "at": {"attack": _AT},
    "at_smoothed_0.5": {"attack": _AT, "smoothing": 0.5},
    "at_smoothed_0.8": {"attack": _AT, "smoothing": 0.8},
    "fgsm_at_smoothed_0.5": {"attack": FGSM(Linf(EPS)), "smoothing": 0.5},
}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"images": 100, "epochs": 6, "queries": 100},
    "cpu": {"images": 497, "epochs": 25, "queries": 1000},
    "gpu": {
        "images": 1000, "epochs": 15, "queries": 1000, "data": "cifar10", "network": "cifar_resnet20", "eps": 8 / 255,
        "train": 20_000, "batch": 256, "device": "cuda",
    },
}  # fmt: skip
_PAPER = "Naseer, Khan, Porikli, Khan, 2022, arXiv 2212.14875, abstract"


def _claim(statement: str, first: str, last: str, direction: Any, metric: str = "robust_accuracy") -> Claim:
    return Claim(statement, _PAPER, (first, last), metric, direction, SCALES)


CLAIMS = [
    *(
        _claim(
            f"Ten guided steps leave fewer images standing than ten of PGD ({name})",
            f"{name} / pgd_ce_10",
            f"{name} / gpga_10",
            "lower",
        )
        for name in TARGETS
        if name != "at"
    ),
    *(
        _claim(f"... and fewer than fifty of PGD ({name})", f"{name} / pgd_ce_50", f"{name} / gpga_10", "lower")
        for name in TARGETS
        if name != "at"
    ),
    _claim(
        "What fifty steps of PGD miss tells smoothed training from training with hard labels",
        "at / masking",
        "at_smoothed_0.5 / masking",
        "higher",
        "masking_score",
    ),
    _claim(
        "With guided steps first, AutoAttack needs fewer passes for an image",
        "at_smoothed_0.5 / autoattack",
        "at_smoothed_0.5 / guided_autoattack",
        "lower",
        "passes",
    ),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train guide and targets, and attack the targets; see the package for the rows."""
    s = SCALES[scale]
    threat = Linf(s.get("eps", EPS))
    train, (x, y) = _examples(s, "train", s.get("train")), _examples(s, "test", s["images"])

    def trained(seed: int, attack: Any, smoothing: float = 0.0) -> nn.Module:
        model = network(seed) if "network" not in s else fresh(s["network"], 10, seed).to(s["device"])
        inner = replace(attack, threat=threat)
        return fit(model, train, s["epochs"], inner, smoothing, seed, batch=s.get("batch", 64))

    progress("guide: training")
    guide = trained(derive(seed, "guide"), _AT)
    rows = []
    for name, settings in TARGETS.items():
        progress(f"{name}: training")
        model = trained(seed, **settings)
        progress(f"{name}: attacks")
        rows += _attacked(name, model, guide, x, y, threat, s["queries"], seed)
    return {"rows": rows}


def attacks(guide: Any, threat: Linf) -> dict[str, Attack]:
    """The attacks of the check, and the guided start; all but "transfer" run on the target."""
    return {**Guided(threat).attacks(guide), "gpga_10_started": GPGA(threat, guide, guided_start=True)}


def _examples(s: Mapping[str, Any], part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    if "data" not in s:
        return digits(part, limit)
    data = load_data(s["data"], split=part, limit=limit)
    batch = data.batch(range(len(data))).to(s["device"])
    assert batch.y is not None
    return batch.x, batch.y


def _attacked(
    name: str, model: Any, guide: Any, x: Tensor, y: Tensor, threat: Linf, queries: int, seed: int
) -> list[dict[str, Any]]:
    clean = right(model, x, y)
    rows = [row(f"{name} / clean", "robust_accuracy", clean)]
    stands: dict[str, Tensor] = {}
    for label, attack in attacks(guide, threat).items():
        z = attack(guide if label == "transfer" else model, x, y, seed=seed)
        stands[label] = clean & right(model, z, y)
        rows.append(row(f"{name} / {label}", "robust_accuracy", stands[label]))
    missed = stands["pgd_ce_50"].float() - stands["gpga_10"].float()
    rows.append({"arm": f"{name} / masking", "metric": "masking_score", "examples": missed.tolist()})
    for label, first in (("autoattack", None), ("guided_autoattack", guide)):
        found = AutoAttack(threat, queries=queries, guide=first).run(model, x, y, seed=seed)
        rows.append(row(f"{name} / {label}", "robust_accuracy", clean & ~found.success))
        spent = (found.forwards + found.backwards).to(torch.float64)
        rows.append({"arm": f"{name} / {label}", "metric": "passes", "examples": spent.tolist()})
    return rows
