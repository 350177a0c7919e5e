"""Detectors judged by the conventional and by the human-centric notion, over nine classifiers and eight test sets.

The classifiers are the pretrained CIFAR-10 networks of the data folder, plainly and adversarially trained. Familiar:
the test set. Shifted: four of its corruptions at severity 3. Unfamiliar: CIFAR-100, traffic signs, textures, letters.
Detectors are fitted on training images. A seed draws other examples everywhere; a classifier is the unit: the figure of
a detector is one AUROC for each, and differences are paired by classifier. In pooled cells every set weighs the same.

The study had 45 classifiers of ImageNet; which ones and which eight sets could not be confirmed. This is its shape.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from withstand.audit.checks.unfamiliar import fit_input
from withstand.corruptions import corrupt
from withstand.data import load_data
from withstand.data.load import data_root
from withstand.detection.judging import acceptable, judge
from withstand.detection.ood import (
    ASH,
    BATS,
    DICE,
    GEN,
    KNN,
    MDS,
    MSP,
    RMDS,
    SHE,
    Bank,
    Energy,
    GradNorm,
    KLMatching,
    MaxLogit,
    ReAct,
    TemperatureScaling,
    ViM,
)  # fmt: skip
from withstand.models import as_target, load_model
from withstand.protocols import Claim
from withstand.random import Rows, derive

SYSTEM = "ood_human_centric"

NETWORKS = {  # file in the folder of weights: network of the zoo
    "resnet20": "cifar_resnet20",
    "resnet32": "cifar_resnet32",
    "resnet56": "cifar_resnet56",
    "lenet": "lenet",
    "cnn_a_adv2": "cnn_a",
    "cnn_a_adv4": "cnn_a",
    "cnn_a_mix4": "cnn_a",
    "resnet2b_adv": "cifar_resnet2b",
    "resnet4b_adv": "cifar_resnet4b",
}
SHIFTED = ("gaussian_noise", "defocus_blur", "contrast", "jpeg_compression")
UNFAMILIAR = ("cifar100", "gtsrb", "textures", "notmnist")
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"fitted": 60, "familiar": 60, "each": 20},
    "cpu": {"fitted": 1000, "familiar": 800, "each": 300},
    "gpu": {"fitted": 5000, "familiar": 4000, "each": 600, "device": "cuda"},
}
DETECTORS: tuple[Any, ...] = (
    MSP(), MaxLogit(), Energy(), GEN(), TemperatureScaling(), KLMatching(), ReAct(), DICE(), ASH(), GradNorm(), ViM(), MDS(),
    RMDS(), KNN(10), SHE(), BATS(where="penultimate", lam=1.0),
)  # fmt: skip
RIVALS = ("energy", "gradnorm", "react", "vim", "mds", "knn")
_PAPER = "Zhu et al., IJCV 2024, arXiv 2211.16778, abstract"
CELLS = ("familiar", "familiar + shifted", "familiar + unfamiliar", "all")


def _claims() -> list[Claim]:
    found = []
    for d in RIVALS:
        statement = f"{d} finds more unfamiliar inputs than MSP by the conventional notion"
        found.append(Claim(statement, _PAPER, ("msp", d), "conventional, unfamiliar", "higher", SCALES))
        for cell, said in (("all", "all sets"), ("familiar", "the test set alone")):
            statement = f"MSP tells right answers from everything else better than {d} (human-centric, {said})"
            found.append(Claim(statement, _PAPER, (d, "msp"), f"human-centric, {cell}", "higher", SCALES))
    return found


CLAIMS = _claims()


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Score every set with every detector of every classifier; see the package for the rows."""
    s = SCALES[scale]
    sets, (x, y) = examples(s, seed), learned(s, seed)
    cells: dict[str, dict[str, list[float]]] = {}
    taus = []
    for name, model in networks(s.get("device", "cpu")).items():
        progress(name)
        found = aurocs(model, sets, x, y, seed)
        for metric, by in found.items():
            for detector, value in by.items():
                cells.setdefault(metric, {}).setdefault(detector, []).append(value)
        taus.append(agreement(found["conventional, unfamiliar"], found["human-centric, all"]))
    rows = [
        {"arm": detector, "metric": metric, "examples": [round(v, 5) for v in values]}
        for metric, by in cells.items()
        for detector, values in by.items()
    ]
    shares = {
        m: explained(np.array(list(cells[m].values()))) for m in ("conventional, unfamiliar", "human-centric, all")
    }
    said = {"explained_by": shares, "classifiers": list(NETWORKS)}
    return {"rows": [*rows, {"arm": "rankings", "metric": "kendall_tau", "examples": taus, **said}]}


def aurocs(
    model: nn.Module, sets: Mapping[str, tuple[Tensor, Tensor]], x: Tensor, y: Tensor, seed: int
) -> dict[str, dict[str, float]]:
    """AUROC by metric ("NOTION, CELL") and detector, and the accuracies of the classifier as a detector named "accuracy".

    sets: inputs and labels (-1: of no class) by name, "familiar" first. x, y: what the detectors are fitted on.
    """
    bank = Bank(as_target(model), DETECTORS, seed)
    fitted = bank.fit(x.split(500), y)
    scores: dict[str, dict[str, np.ndarray]] = {}
    said: dict[str, np.ndarray] = {}
    for name, (inputs, _) in sets.items():
        parts = [bank.judge(part, fitted) for part in inputs.split(500)]
        said[name] = torch.cat([z.argmax(1) for _, z in parts]).cpu().numpy()
        scores[name] = {d: torch.cat([p[d] for p, _ in parts]).cpu().numpy() for d in bank.detectors}
    labels = {name: truth.cpu().numpy() for name, (_, truth) in sets.items()}
    members = {
        "familiar": ["familiar"],
        "familiar + shifted": ["familiar", *(n for n in sets if n in SHIFTED)],
        "familiar + unfamiliar": ["familiar", *(n for n in sets if n in UNFAMILIAR)],
        "all": list(sets),
    }
    found: dict[str, dict[str, float]] = {}

    def judged(metric: str, names: list[str], notion: Any) -> None:
        truth, guess = (np.concatenate([which[n] for n in names]) for which in (labels, said))
        weights = np.concatenate([np.full(len(labels[n]), 1 / len(labels[n])) for n in names])
        accept, used = acceptable(truth, guess, np.zeros(len(truth), bool), notion)
        for d in bank.detectors:
            all_scores = np.concatenate([scores[n][d] for n in names])
            found.setdefault(metric, {})[d] = judge(all_scores[used], accept[used], None, weights[used]).auroc

    judged("conventional, unfamiliar", members["familiar + unfamiliar"], "conventional")
    for cell in CELLS:
        judged(f"human-centric, {cell}", members[cell], "human_centric")
    for name in ("familiar", *(n for n in sets if n in SHIFTED)):
        found[f"accuracy, {name}"] = {"classifier": float((said[name] == labels[name]).mean())}
    return found


def agreement(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Kendall's tau of two rankings of the same detectors: 1 the same, 0 unrelated, -1 reversed."""
    tau: Any = kendalltau([one[d] for d in one], [other[d] for d in one])
    return float(tau.statistic)


def explained(table: np.ndarray) -> dict[str, float]:
    """The shares of the variance of a table [detectors, classifiers] that lie between detectors, between classifiers, and in
    neither alone."""
    whole = ((table - table.mean()) ** 2).mean()
    rows, columns = table.mean(1).var() / whole, table.mean(0).var() / whole
    return {"detector": float(rows), "classifier": float(columns), "both": float(1 - rows - columns)}


def networks(device: str) -> dict[str, nn.Module]:
    """The classifiers with their weights, from the data folder."""
    folder = data_root() / "weights"
    loaded = {n: load_model(f"zoo:{zoo}", weights=folder / f"cifar10_{n}.pth") for n, zoo in NETWORKS.items()}
    return {n: t.module.to(device) for n, t in loaded.items() if t.module is not None}


def learned(s: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    """What the detectors are fitted on."""
    data = load_data("cifar10", split="train", limit=s["fitted"], seed=derive(seed, "fitted") & 0x7FFFFFFF)
    batch = data.batch(range(len(data))).to(s.get("device", "cpu"))
    assert batch.y is not None
    return batch.x, batch.y


def examples(s: Mapping[str, Any], seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and labels of every set; familiar images, and their corruptions, are different images."""
    n, each = s["familiar"], s["each"]
    data = load_data("cifar10", split="test", limit=n + each, seed=derive(seed, "familiar") & 0x7FFFFFFF)
    batch = data.batch(range(len(data)))
    assert batch.y is not None
    order = Rows.count(derive(seed, "parts"), len(data)).bits((), "order").argsort()
    near, moved = order[:n], order[n:]
    found = {"familiar": (batch.x[near], batch.y[near])}
    for kind in SHIFTED:
        found[kind] = corrupt(batch.x[moved], kind, 3, seed, preset="cifar"), batch.y[moved]
    for name in UNFAMILIAR:
        other = load_data(name, split="test", limit=each, seed=derive(seed, name) & 0x7FFFFFFF)
        x = fit_input(other.batch(range(len(other))).x, batch.x.shape[1:])
        found[name] = x, torch.full((len(x),), -1)
    device = s.get("device", "cpu")
    return {name: (x.to(device), y.to(device)) for name, (x, y) in found.items()}
