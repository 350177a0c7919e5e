"""Arms of a hardening experiment: each is a recipe, trained on the same examples with the same budget and judged alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import AutoAttack
from withstand.corruptions import corrupt
from withstand.data import load_data
from withstand.hardening.harden import harden
from withstand.models.zoo.table import find
from withstand.protocols import Dataset
from withstand.random import derive
from withstand.registry import parse
from withstand.threats import Linf
from withstand.training import Trainer

TRAINER = ("epochs", "batch", "optimizer", "schedule", "augment", "precision", "channels_last", "accelerator")
"""Settings of a scale that are the trainer's."""
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "brightness", "contrast", "pixelate")


@dataclass(frozen=True)
class Arm:
    """recipe: its text, in which {eps}, {attack}, ... stand for settings of the scale. trainer: settings of its own beside
    those of the scale, whose augmentations its own follow. network: a name of the zoo where it differs."""

    recipe: str
    trainer: Mapping[str, Any] = field(default_factory=dict)
    network: str | None = None

    def settings(self, scale: Mapping[str, Any]) -> dict[str, Any]:
        """Those of its trainer."""
        shared = {k: scale[k] for k in TRAINER if k in scale}
        augment = [text for text in (shared.get("augment"), self.trainer.get("augment")) if text]
        return {**shared, **self.trainer, "augment": tuple(augment)}


def digits_scales(**changes: Any) -> dict[str, dict[str, Any]]:
    """Settings of experiments on scikit-learn's digits: 8x8 pixels, Linf 0.15, a small CNN with batch norm."""
    cpu = {
        "data": "digits", "network": "digits_bn_cnn", "eps": 0.15, "attack": "pgd(linf(0.15), steps=5)", "epochs": 25,
        "batch": 100, "optimizer": "sgd(0.1)", "schedule": "cosine", "train": 1200, "test": 500, "attacked": 400,
    }  # fmt: skip
    cpu |= changes
    smoke = cpu | {"epochs": max(2, cpu["epochs"] // 5), "test": 200, "attacked": 60, "queries": 200}
    return {"smoke": smoke, "cpu": cpu}


def cifar_scale(**changes: Any) -> dict[str, dict[str, Any]]:
    """Settings of the same experiments on CIFAR-10 with a ResNet-18, Linf 8/255, on one GPU."""
    gpu = {
        "data": "cifar10", "network": "resnet18", "eps": 8 / 255, "attack": "pgd(linf(8/255), steps=5, step=1/4)",
        "epochs": 15, "batch": 256, "optimizer": "sgd(0.2)", "schedule": "one_cycle", "augment": "crop_flip(4)",
        "precision": "bf16-mixed", "channels_last": True, "accelerator": "cuda", "device": "cuda",
        "train": 30_000, "test": 2000, "attacked": 500, "queries": 5000,
        "networks": {"digits_nf": "nf_resnet18"},
    }  # fmt: skip
    return {"gpu": gpu | changes}


def measure_arms(
    arms: Mapping[str, Arm],
    settings: Mapping[str, Any],
    seed: int,
    progress: Callable[[str], None],
    more: Callable[[str, Any, Tensor, Tensor], list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Train every arm and judge it: rows of accuracy, robust accuracy under AutoAttack, accuracy under corruptions.

    settings: data, network, eps, attack (the inner attack's text), epochs, batch, optimizer, schedule, train (examples),
    test (examples), attacked (test examples that AutoAttack faces); further settings of the trainer (`TRAINER`), device, and
    networks: by which of them those that arms name are replaced. The best epoch by validation is judged, for all arms
    alike: by PGD on a tenth of the training examples, or by clean accuracy where a recipe has no attack. more: what else to
    measure, called with the arm's name, what `harden` returned and the test examples.
    """
    learn = sample(settings["data"], "train", settings["train"], seed)
    test = sample(settings["data"], "test", settings["test"], 0).batch(range(settings["test"]))
    assert test.y is not None
    x, y = test.x.to(settings.get("device", "cpu")), test.y.to(settings.get("device", "cpu"))
    rows = []
    for name, arm in arms.items():
        progress(f"{name}: training")
        own = arm.network or settings["network"]
        network = fresh(settings.get("networks", {}).get(own, own), len(learn.classes), seed)
        trainer = Trainer(**arm.settings(settings))
        recipe = parse(arm.recipe.format(**settings), "recipe")
        hardened = harden(network, learn, recipe, trainer=trainer, seed=seed, name=name)
        progress(f"{name}: judging")
        rows += judged(name, hardened.module, x, y, settings, seed)
        if more is not None:
            rows += more(name, hardened, x, y)
    return {"rows": rows}


def judged(name: str, model: nn.Module, x: Tensor, y: Tensor, settings: Mapping[str, Any], seed: int) -> list[dict]:
    """Clean, robust and corrupted accuracy of one model, example by example."""
    model.to(x.device).eval()
    rows = [row(name, "accuracy", right(model, x, y))]
    few = slice(0, settings["attacked"])
    attack = AutoAttack(Linf(settings["eps"]), queries=settings.get("queries", 1000))
    found = attack.run(model, x[few], y[few], seed=derive(seed, "judge"))
    rows.append(row(name, "robust_accuracy", ~found.success & right(model, x[few], y[few])))
    stands = (
        torch.stack([right(model, corrupt(x, kind, 3, seed, preset="cifar"), y) for kind in CORRUPTIONS])
        .float()
        .mean(0)
    )
    return [*rows, {"arm": name, "metric": "corruption_accuracy", "examples": [round(v, 4) for v in stands.tolist()]}]


def row(arm: str, metric: str, examples: Tensor) -> dict[str, Any]:
    """One row of yes and no."""
    return {"arm": arm, "metric": metric, "examples": "".join("1" if e else "0" for e in examples.tolist())}


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which examples the model has right, bool [N]."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(500)]) == y


def sample(name: str, part: str, limit: int, seed: int) -> Dataset:
    """A stratified sample of a named set."""
    return load_data(name, split=part, limit=limit, seed=seed)


def fresh(network: str, classes: int, seed: int) -> nn.Module:
    """A network of the zoo with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights") & 0x7FFFFFFF)
        return find(network).build(classes)
