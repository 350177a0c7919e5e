"""MaxMatch beside FixMatch, the mean over as many variants, and the labels alone: digits and Fashion-MNIST, few labels.

The quantity that the method aims at is accuracy under the worst of several strong augmentations. All arms of an experiment
see the same labels, the same batches and as many steps; one FixMatch has as many steps as its forward passes cost what
three variants do, and one learns the strengths of its augmentation. Networks are small: on the large scale
WideResNet-28-2 with ReLU and torch's batch norm, where the official one has leaky ReLU and slow batch statistics.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from withstand.data import load_data
from withstand.hardening.harden import harden
from withstand.protocols import Claim, Dataset
from withstand.random import Rows, derive
from withstand.registry import parse
from withstand.representation.maxmatch import vary
from withstand.reproductions.arms import fresh, right, row
from withstand.training import Step, Trainer

SYSTEM = "maxmatch"

ARMS = {
    "supervised": "supervised(labels={labels}, weak={weak})",
    "fixmatch": "fixmatch({strong}, labels={labels}, weak={weak})",
    "mean_of_3": "maxmatch({strong}, labels={labels}, weak={weak}, reduce='mean')",
    "max_of_3": "maxmatch({strong}, labels={labels}, weak={weak})",
}
LEARNED = "fixmatch_ctaugment"
"""FixMatch with the strengths of its augmentation learned; judged, as all, under those of the others."""
LONGER = "fixmatch_equal_passes"
"""FixMatch for `longer` epochs; (B + 4 mu B) / (B + 2 mu B) times as many, as its steps have fewer forward passes."""
DRAWS = 8
WORST = f"worst_of_{DRAWS}"

_DIGITS = {
    "data": "digits", "network": "digits_bn_cnn", "labels": 3, "train": 1200, "test": 597, "batch": 100, "mu": 4,
    "epochs": 33, "longer": 62, "lr": 0.03, "ema": 0.99, "weak": "crop_flip(1, flip=False)",
    "strong": "[affine(25, shear=0.25, shift=0.25, scale=0.2), light(0.3, 0.3), add_noise(0.1), cutout(0.375)]",
}  # fmt: skip
_FASHION = {
    "data": "fashion_mnist", "size": 14, "network": "mnist_bn_cnn", "train": 20_000, "test": 1000, "batch": 80, "mu": 4,
    "epochs": 4, "lr": 0.03, "ema": 0.99, "weak": "crop_flip(2)", "strong": "[crop_flip(2), randaugment, cutout(0.5)]",
    "learned": "[crop_flip(2), ctaugment, cutout(0.5)]", "channels_last": True,
}  # fmt: skip
_CIFAR = {
    "data": "cifar10", "network": "wrn_28_2", "train": 30_000, "test": 2000, "batch": 320, "mu": 4, "epochs": 17,
    "lr": 0.03, "ema": 0.999, "weak": "crop_flip(4)", "strong": "[crop_flip(4), randaugment, cutout(0.5)]",
    "learned": "[crop_flip(4), ctaugment, cutout(0.5)]",
    "device": "cuda", "accelerator": "cuda", "precision": "bf16-mixed", "channels_last": True,
}  # fmt: skip
_TINY = _DIGITS | {
    "train": 400, "test": 60, "batch": 50, "epochs": 1, "longer": 2,
    "learned": "[crop_flip(1, flip=False), ctaugment, cutout(0.375)]",
}  # fmt: skip


def _experiments(images: Mapping[str, Any], digits: Mapping[str, Any]) -> dict[str, Any]:
    return {"digits, 3 labels per class": digits} | {
        f"images, {labels} labels per class": {**images, "labels": labels, "longer": None} for labels in (4, 25)
    }


SCALES: dict[str, dict[str, Any]] = {
    "smoke": _experiments(_TINY, _TINY),
    "cpu": _experiments(_FASHION, _DIGITS),
    "gpu": _experiments(_CIFAR, _DIGITS),
}
LEARNS = "images, 25 labels per class"
"""The experiment in which there is an arm with learned strengths."""
_TRAINER = ("batch", "epochs", "accelerator", "precision", "channels_last")
_PAPER = "Jiang et al., 2022, arXiv 2209.12611, abstract: worst-case consistency"
_OWN = "Follows from the objective, which the worst of K draws enters; the paper's tables were not at hand"


def _claim(statement: str, source: str, where: str, first: str, last: str, metric: str) -> Claim:
    return Claim(
        f"{statement} ({where})", source, (f"{where} / {first}", f"{where} / {last}"), metric, "higher", SCALES
    )


CLAIMS = [
    claim
    for where in SCALES["cpu"]
    for claim in (
        _claim(
            "FixMatch beats the labels alone",
            "Sohn et al., 2020, arXiv 2001.07685",
            where,
            "supervised",
            "fixmatch",
            "accuracy",
        ),
        _claim("MaxMatch has more clean accuracy than FixMatch", _PAPER, where, "fixmatch", "max_of_3", "accuracy"),
        _claim(f"... and more under the worst of {DRAWS} strong draws", _OWN, where, "fixmatch", "max_of_3", WORST),
        _claim(
            "The maximum does more for that than the mean over as many", _OWN, where, "mean_of_3", "max_of_3", WORST
        ),
    )
] + [
    _claim(
        "FixMatch with CTAugment beats the labels alone",
        "Sohn et al., 2020, arXiv 2001.07685",
        LEARNS,
        "supervised",
        LEARNED,
        "accuracy",
    ),
    _claim(
        "MaxMatch withstands more than FixMatch with as many forward passes",
        _OWN,
        next(iter(SCALES["cpu"])),
        LONGER,
        "max_of_3",
        WORST,
    ),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train and judge the arms of every experiment; see the package for the rows."""
    rows = []
    for where, s in SCALES[scale].items():
        arms = {name: (text, s["epochs"]) for name, text in ARMS.items()}
        if s["longer"]:
            arms[LONGER] = (ARMS["fixmatch"], s["longer"])
        if where == LEARNS:
            arms[LEARNED] = (ARMS["fixmatch"].replace("{strong}", s["learned"]), s["epochs"])
        for name, (text, epochs) in arms.items():
            progress(f"{where} / {name}: training")
            model = _trained(text, {**s, "epochs": epochs}, seed)
            rows += judged(f"{where} / {name}", model, _load(s, "test", 0), s)
    return {"rows": rows}


def judged(name: str, model: nn.Module, data: Dataset, s: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy on clean examples, on average under strong augmentations, and under all of `DRAWS` of them, which are the
    same for all models."""
    device = s.get("device", "cpu")
    model, batch = model.to(device).eval(), data.batch(range(len(data))).to(device)
    strong = parse(f"fixmatch({s['strong']})", "recipe").strong
    step = Step(0, 1, 0, 1, derive(0, "judge"), Rows.count(0, len(batch), device), box=data.space.box)
    draws = vary(batch, strong, step, "judge", len(data.classes), DRAWS)
    held = torch.stack([right(model, draw.x, batch.y) for draw in draws])  # type: ignore[arg-type]
    return [
        row(name, "accuracy", right(model, batch.x, batch.y)),  # type: ignore[arg-type]
        {"arm": name, "metric": "strong_accuracy", "examples": held.float().mean(0).tolist()},
        row(name, WORST, held.all(0)),
    ]


def _trained(text: str, s: Mapping[str, Any], seed: int) -> nn.Module:
    trainer = Trainer(
        optimizer=f"sgd({s['lr']}, weight_decay=5e-4, nesterov=True)",
        schedule="cosine_arc",
        averaging=f"ema({s['ema']})",
        sampler=f"labelled_and_not({s['mu']})",
        **{key: s[key] for key in _TRAINER if key in s},
    )
    learn = _load(s, "train", seed)
    network = fresh(s["network"], len(learn.classes), seed)
    # no validation: its labels would count, and the average of the last weights is what is judged
    return harden(network, learn, text.format(**s), validation=None, trainer=trainer, seed=seed).module  # type: ignore[return-value]


def _load(s: Mapping[str, Any], part: str, seed: int) -> Dataset:
    return load_data(s["data"], split=part, limit=s[part], seed=seed, size=s.get("size"))
