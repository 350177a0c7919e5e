"""Detectors of unfamiliar inputs with and without typical features (BATS).

Three architectures with batch norm learn the digits ("plain": three convolutions and a mean; "small", "residual": of
the zoo). Unfamiliar are characters, patches of photographs, uniform noise and digits whose pixels are shuffled, equally
many of each. The width of the typical range is the same for all (lam = 1, chosen beforehand, for no unfamiliar
example); the sweep beside it says what other widths would have done.

An unfamiliar example counts for the AUROC with the share of familiar test examples that look less suspicious (ties half),
so that the mean over examples is the AUROC; for FPR95 with whether it passes where 95 % of the familiar ones do.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from withstand.audit.checks.unfamiliar import fit_input
from withstand.data import load_data
from withstand.detection.ood import BATS, KNN, MSP, ODIN, Bank, Energy, GradNorm, MaxLogit, ReAct
from withstand.models import as_target
from withstand.protocols import Claim
from withstand.random import Rows, derive
from withstand.reproductions.arms import fresh, right, row
from withstand.reproductions.classic_attacks import digits
from withstand.training.basic import fit

SYSTEM = "bats"

LAM = 1.0
SWEEP = (0.5, 1.5, 2.0, 3.0, 50.0)
NETWORKS = {"plain": "blocks", "small": "digits_bn_cnn", "residual": "digits_preact"}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"epochs": 1, "familiar": 60, "each": 15, "kinds": ("noise", "shuffled")},
    "cpu": {"epochs": 30, "familiar": 497, "each": 100, "kinds": ("omniglot", "cifar10", "noise", "shuffled")},
    "gpu": {
        "epochs": 60, "familiar": 1000, "each": 500, "kinds": ("cifar100", "gtsrb", "textures", "noise"), "data": "cifar10",
        "networks": {"plain": "cifar_resnet20", "small": "wrn16_1", "residual": "resnet18"},
        "train": 30_000, "batch": 128, "device": "cuda",
    },
}  # fmt: skip
DETECTORS = {"energy": Energy(), "msp": MSP(), "max_logit": MaxLogit(), "odin": ODIN(), "gradnorm": GradNorm()}
_PAPER = "Zhu et al., 2022, arXiv 2210.04200"


def _claims() -> list[Claim]:
    found = []
    for network in NETWORKS:
        for detector in ("energy", "msp", "odin", "gradnorm"):
            source = f"{_PAPER}, released code: FPR95 of Energy 54.04 to 37.01 % (CIFAR-10, SVHN)"
            for metric, better in (("fpr95", "lower"), ("auroc", "higher")):
                word: Literal["higher", "lower"] = "lower" if better == "lower" else "higher"
                statement = f"{detector} finds more unfamiliar inputs with typical features ({network}, {metric})"
                arms = (f"{network} / {detector}", f"{network} / {detector}+bats")
                found.append(Claim(statement, source, arms, metric, word, SCALES))
        statement = f"Energy with typical features finds more than ReAct ({network}, fpr95)"
        arms = (f"{network} / react", f"{network} / energy+bats")
        found.append(
            Claim(statement, f"{_PAPER}, abstract: better than the best before", arms, "fpr95", "lower", SCALES)
        )
    return found


CLAIMS = _claims()


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the classifiers, fit the detectors, and score familiar and unfamiliar examples; see the package for the rows."""
    s = SCALES[scale]
    train, (x, y) = _examples(s, "train", s.get("train")), _examples(s, "test", s["familiar"])
    far = torch.cat([unfamiliar(kind, x, s["each"], seed) for kind in s["kinds"]])
    rows = []
    for name, network in s.get("networks", NETWORKS).items():
        progress(f"{name}: training")
        model = fit(built(network, x, int(y.max()) + 1, seed), train, s["epochs"], seed=seed, batch=s.get("batch", 64))
        progress(f"{name}: scoring")
        rows.append(row(f"{name} / clean", "accuracy", right(model, x, y)))
        rows += scored(name, model, train[0], x, far, seed)
    return {"rows": rows}


def built(name: str, x: Tensor, classes: int, seed: int) -> nn.Module:
    """A network of the zoo with weights drawn from the seed; "blocks": three of convolution and batch norm, then a mean."""
    if name != "blocks":
        return fresh(name, classes, seed).to(x.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights") & 0x7FFFFFFF)
        layers: list[nn.Module] = []
        widths = (x.shape[1], 32, 64, 64)
        for i, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, 2 if i == 1 else 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)).to(x.device)


def unfamiliar(kind: str, x: Tensor, n: int, seed: int) -> Tensor:
    """n inputs of no class in the shape of x: uniform "noise", familiar examples with "shuffled" pixels, or a named set."""
    rows = Rows.count(derive(seed, kind), n, x.device)
    if kind == "noise":
        return rows.uniform(x.shape[1:], "noise")
    if kind == "shuffled":
        cells = x[:n].flatten(2)
        order = Rows.count(derive(seed, kind), len(cells), x.device).bits(cells.shape[2:], "order").argsort(1)
        return cells.gather(2, order[:, None].expand_as(cells)).view_as(x[:n])
    data = load_data(kind, split="test", limit=n, seed=derive(seed, kind) & 0x7FFFFFFF)
    return fit_input(data.batch(range(len(data))).x, x.shape[1:]).to(x.device)


def scored(name: str, model: nn.Module, train: Tensor, x: Tensor, far: Tensor, seed: int) -> list[dict[str, Any]]:
    """Rows of AUROC and FPR95 of every detector; fitted on the training examples."""
    detectors: list[Any] = [*DETECTORS.values(), *(BATS(d, lam=LAM) for d in DETECTORS.values())]
    detectors += [ReAct(), KNN(10), BATS(where="penultimate", lam=LAM)]
    bank = Bank(as_target(model), [*detectors, *(BATS(lam=lam) for lam in SWEEP)], seed)
    fitted = bank.fit(train.split(500))
    near, other = ([bank.score(part, fitted) for part in inputs.split(500)] for inputs in (x, far))
    arms = [*bank.detectors]
    first = arms.index("knn") + 1
    called = dict(zip(arms[first:], ["energy+bats(penultimate)", *(f"energy+bats({lam:g})" for lam in SWEEP)]))
    rows = []
    for arm in arms:
        familiar, unknown = (torch.cat([p[arm] for p in parts]).cpu().numpy() for parts in (near, other))
        label = f"{name} / {called.get(arm, arm)}"
        rows.append({"arm": label, "metric": "auroc", "examples": placements(familiar, unknown).round(3).tolist()})
        rows.append(row(label, "fpr95", torch.from_numpy(unknown <= threshold(familiar))))
    return rows


def placements(familiar: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """The share of familiar scores below each unknown one, ties half; their mean is the AUROC."""
    ordered = np.sort(familiar)
    below, upto = (np.searchsorted(ordered, unknown, side) for side in ("left", "right"))
    return (below + upto) / 2 / len(familiar)


def threshold(familiar: np.ndarray, kept: float = 0.95) -> float:
    """The lowest score at or below which at least this share of the familiar ones lies."""
    return float(np.sort(familiar)[int(np.ceil(kept * len(familiar) - 1e-9)) - 1])


def _examples(s: dict[str, Any], part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    if "data" not in s:
        return digits(part, limit)
    data = load_data(s["data"], split=part, limit=limit, seed=0)
    batch = data.batch(range(len(data))).to(s["device"])
    assert batch.y is not None
    return batch.x, batch.y
