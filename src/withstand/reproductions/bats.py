"""Detectors of unfamiliar inputs with and without typical features (BATS).

Three architectures with batch norm learn the digits ("plain": three convolutions and a mean; "small", "residual": of
the zoo). Unfamiliar are characters, patches of photographs, uniform noise and digits whose pixels are shuffled, equally
many of each. The width of the typical range is the same for all (lam = 1, chosen beforehand, for no unfamiliar
example); the sweep beside it says what other widths would have done. Beside them stand published networks that have
learned CIFAR-10, whose unfamiliar inputs are of other sets of pictures. Of features after pooling, the range is known from
examples only: how many it takes is swept, at the width of 3.25 that the released code has there.

An unfamiliar example counts for the AUROC with the share of familiar test examples that look less suspicious (ties half),
so that the mean over examples is the AUROC; for FPR95 with whether it passes where 95 % of the familiar ones do.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from withstand.audit.checks.unfamiliar import fit_input
from withstand.data import load_data
from withstand.detection.ood import BATS, KNN, MSP, ODIN, Bank, Energy, GradNorm, MaxLogit, ReAct
from withstand.models import as_target
from withstand.protocols import Claim, Dataset
from withstand.random import Rows, derive
from withstand.reproductions.arms import fresh, right, row
from withstand.reproductions.classic_attacks import digits
from withstand.reproductions.ood_human_centric import networks
from withstand.training.basic import fit

SYSTEM = "bats"

LAM = 1.0
SWEEP = (0.5, 1.5, 2.0, 3.0, 50.0)
FEW = (10, 50, 100, 500)
PUBLISHED = 3.25
NETWORKS = {"plain": "blocks", "small": "digits_bn_cnn", "residual": "digits_preact"}
PRETRAINED = ("resnet20", "resnet32", "resnet56")
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "epochs": 1, "familiar": 60, "each": 15, "kinds": ("noise", "shuffled"), "pretrained": PRETRAINED, "far": ("gtsrb",),
        "known": 60,
    },
    "cpu": {
        "epochs": 30, "familiar": 497, "each": 100, "kinds": ("omniglot", "cifar10", "noise", "shuffled"),
        "pretrained": PRETRAINED, "far": ("cifar100", "gtsrb", "textures", "notmnist"),
        "known": 1000,
    },
    "gpu": {
        "epochs": 60, "familiar": 1000, "each": 500, "kinds": ("cifar100", "gtsrb", "textures", "noise"), "data": "cifar10",
        "networks": {"plain": "cifar_resnet20", "small": "wrn16_1", "residual": "resnet18"},
        "train": 30_000, "batch": 128, "device": "cuda", "pretrained": PRETRAINED,
        "far": ("cifar100", "gtsrb", "textures", "notmnist"),
        "known": 1000,
    },
}  # fmt: skip
DETECTORS = {"energy": Energy(), "msp": MSP(), "max_logit": MaxLogit(), "odin": ODIN(), "gradnorm": GradNorm()}
_PAPER = "Zhu et al., 2022, arXiv 2210.04200"


_RELEASED = f"{_PAPER}, released code: FPR95 of Energy 54.04 to 37.01 % (CIFAR-10, SVHN)"
_BEST = f"{_PAPER}, abstract: better than the best before"


def _claim(statement: str, network: str, first: str, last: str, metric: str, source: str = _RELEASED) -> Claim:
    arms = (f"{network} / {first}", f"{network} / {last}")
    return Claim(f"{statement} ({network}, {metric})", source, arms, metric,
                 "lower" if metric == "fpr95" else "higher", SCALES)  # fmt: skip


def _claims() -> list[Claim]:
    found = []
    for network in NETWORKS:
        for detector in ("energy", "msp", "odin", "gradnorm"):
            statement = f"{detector} finds more unfamiliar inputs with typical features"
            for metric in ("fpr95", "auroc"):
                found.append(_claim(statement, network, detector, f"{detector}+bats", metric))
        statement = "Energy with typical features finds more than ReAct"
        found.append(_claim(statement, network, "react", "energy+bats", "fpr95", _BEST))
    for network in PRETRAINED:
        statement = "energy finds more unfamiliar inputs with typical features"
        for metric in ("fpr95", "auroc"):
            found.append(_claim(statement, f"cifar10 {network}", "energy", "energy+bats", metric))
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
    rows += learned_elsewhere(s, seed, progress) if s["pretrained"] else []
    return {"rows": rows}


def learned_elsewhere(s: dict[str, Any], seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """The same rows for the networks that have learned CIFAR-10."""
    device, own = s.get("device", "cpu"), derive(seed, "cifar10") & 0x7FFFFFFF
    (known, _), (x, y) = (
        _labelled(load_data("cifar10", split=part, limit=n, seed=own), device)
        for part, n in (("train", s["known"]), ("test", s["familiar"]))
    )
    far = torch.cat([unfamiliar(kind, x, s["each"], seed) for kind in s["far"]])
    rows = []
    for name, model in networks(device).items():
        if name in s["pretrained"]:
            progress(f"cifar10 {name}: scoring")
            rows.append(row(f"cifar10 {name} / clean", "accuracy", right(model, x, y)))
            rows += scored(f"cifar10 {name}", model, known, x, far, seed)
    return rows


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
    detectors += [ReAct(), KNN(10)]
    typical = {
        "energy+bats(penultimate)": BATS(where="penultimate", lam=LAM),
        **{f"energy+bats({lam:g})": BATS(lam=lam) for lam in SWEEP},
        **{
            f"energy+bats(penultimate, {PUBLISHED}, of {n})": BATS(where="penultimate", lam=PUBLISHED, images=n)
            for n in FEW
            if n <= len(train)
        },
    }
    bank = Bank(as_target(model), [*detectors, *typical.values()], seed)
    fitted = bank.fit(train.split(500))
    near, other = ([bank.score(part, fitted) for part in inputs.split(500)] for inputs in (x, far))
    arms = [*bank.detectors]
    first = arms.index("knn") + 1
    called = dict(zip(arms[first:], typical))
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
    return _labelled(load_data(s["data"], split=part, limit=limit, seed=0), s["device"])


def _labelled(data: Dataset, device: str) -> tuple[Tensor, Tensor]:
    batch = data.batch(range(len(data))).to(device)
    assert batch.y is not None
    return batch.x, batch.y
