"""Surrogates tuned towards the data distribution beside others: how often their points transfer.

The paper's training was never published and its text was not at hand beyond the abstract: the loss is a reconstruction, and
the paper's numbers (ImageNet, deep networks) are not to be expected here. All rows start from one surrogate and are tuned on
the same images, for at most as many epochs: those on the DCG (norm, unit, sliced) ship their best epoch, which
`max_accuracy_drop` may put before the last; the recorded rows do not tell which did.
The weights were raised once, norm from 0.1 to 0.3 and unit from 0.5 (kept as a row) to 2, since
the accuracy had lost next to nothing; the first seed's transfer rates had been seen by then. Targets: the surrogate's twin
from another seed, a network without batch norm, and one that mixes patches.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import MI, Attack, LogitStd
from withstand.attacks.transfer.dra import dcg_loss
from withstand.data import load_data
from withstand.errors import bad
from withstand.protocols import Claim
from withstand.random import derive
from withstand.registry import parse
from withstand.reproductions.arms import fresh, right, row
from withstand.threats import Linf
from withstand.training import Trainer

SYSTEM = "dra"

ROWS = {
    "untuned": "dra(0.0, max_accuracy_drop=None)",
    "at_2": "pgd_at(attack=pgd(linf(2/255), steps=1, step=1.0, random_start=False))",
    "norm_0.3": "dra(0.3, 'norm')",
    "unit_0.5": "dra(0.5)",
    "unit_2": "dra(2.0)",
    "sliced_0.002": "dra(0.002, 'sliced')",
}
"""How the surrogate is tuned: plainly, on one-step examples, on the length of its gradient alone, or on the DCG."""
_CPU: dict[str, Any] = {
    "surrogate": "cnn", "targets": {"twin": "cnn", "no_norm": "cnn_plain", "unlike": "mixer"},
    "train": 12_000, "epochs": 8, "batch": 128, "optimizer": "sgd(0.05)", "accelerator": "cpu", "device": "cpu",
    "tuned_on": 4000, "tuned_epochs": 3, "tuned_batch": 64, "validation": 1000, "pool": 1000, "images": 250, "eps": 8 / 255,
}  # fmt: skip
SCALES: dict[str, dict[str, Any]] = {
    "smoke": _CPU | {"train": 3000, "epochs": 3, "tuned_on": 500, "tuned_epochs": 1, "pool": 300, "images": 20},
    "cpu": _CPU,
    "gpu": _CPU
    | {"surrogate": "resnet18", "targets": {"twin": "resnet18", "no_norm": "nf_resnet18", "unlike": "vit_ti"}}
    | {"train": 45_000, "epochs": 15, "optimizer": "sgd(0.1)", "accelerator": "cuda", "device": "cuda"}
    | {"tuned_on": 20_000, "tuned_epochs": 4, "pool": 2000, "images": 1000},
}
_PAPER = "Zhu et al., 2022, arXiv 2210.04213, abstract: the direction alone"
_EXPECTED = "own expectation"


def _claim(statement: str, first: str, last: str, metric: str = "transfer", source: str = _EXPECTED) -> Claim:
    return Claim(statement, source, (first, last), metric, "higher", SCALES)


CLAIMS = [
    _claim(
        "Tuned on the DCG, a surrogate's points fool other models more often (MI)",
        "untuned / mi",
        "unit_2 / mi",
        source=_PAPER,
    ),
    _claim("... and so with the published attack", "untuned / logit_std", "unit_2 / logit_std"),
    _claim("... more often than those of a slightly adversarially trained surrogate", "at_2 / mi", "unit_2 / mi"),
    _claim("The length of the gradient alone does so too", "untuned / mi", "norm_0.3 / mi"),
    _claim("The trace term adds to the length (MI)", "norm_0.3 / mi", "unit_2 / mi"),
    _claim(
        "The gain is there on the target least like the surrogate",
        "untuned / mi",
        "unit_2 / mi",
        "transfer_unlike",
    ),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train surrogate and targets, tune the surrogate in every way, attack each and judge on the targets.

    Rows: "transfer" for each tuning and attack, an image's share of the targets that it fools; "transfer_NAME" on one
    target; "accuracy" of each tuned surrogate, "best_epoch", the epoch it comes from, "dcg_norm", its gradient's squared
    length. Only images all models get right.
    """
    s = SCALES[scale]
    progress("networks: training")
    targets = {n: _trained(scale, net, derive(0, "target", n)) for n, net in s["targets"].items()}
    given = _trained(scale, s["surrogate"], derive(seed, "surrogate"))
    held = load_data("cifar10", split="train", limit=s["train"] + s["validation"], seed=0)
    learned = held.subset(range(s["tuned_on"]))  # type: ignore[attr-defined]
    held = held.subset(range(s["train"], s["train"] + s["validation"]))  # type: ignore[attr-defined]
    trainer = Trainer(
        epochs=s["tuned_epochs"],
        batch=s["tuned_batch"],
        optimizer="sgd(0.01)",
        schedule="constant",
        clip_norm=1.0,
        accelerator=s["accelerator"],
    )
    surrogates, rows = {}, []
    for name, recipe in ROWS.items():
        progress(f"{name}: tuning")
        fitted = trainer.fit(parse(recipe, "recipe"), given, learned, held, seed=derive(seed, "tuning"))
        chosen = name.startswith(("norm", "unit", "sliced"))
        surrogates[name] = (fitted.model if chosen else fitted.last).to(s["device"])
        epoch = fitted.best_epoch if chosen and fitted.best_epoch else len(fitted.history)
        rows.append({"arm": name, "metric": "best_epoch", "examples": [epoch]})
    test = load_data("cifar10", split="test", limit=s["pool"], seed=0).batch(range(s["pool"])).to(s["device"])
    assert test.y is not None
    rows += [row(name, "accuracy", right(model, test.x, test.y)) for name, model in surrogates.items()]
    common = torch.stack([right(m, test.x, test.y) for m in (*targets.values(), *surrogates.values())]).all(0)
    kept = common.nonzero().flatten()[: s["images"]]
    if len(kept) < s["images"]:
        raise bad("images", s["images"], f"at most {len(kept)}, which all models get right")
    for name, model in surrogates.items():
        progress(f"{name}: attacks")
        rows += _judged(name, model, targets, test.x[kept], test.y[kept], s["eps"], seed)
    return {"rows": rows}


def _judged(
    name: str, model: nn.Module, targets: dict[str, nn.Module], x: Tensor, y: Tensor, eps: float, seed: int
) -> list[dict[str, Any]]:
    squared = dcg_loss(model, x, y, "norm").detach()
    rows: list[dict[str, Any]] = [
        {"arm": name, "metric": "dcg_norm", "examples": [round(v, 4) for v in squared.tolist()]}
    ]
    attacks: dict[str, Attack] = {"mi": MI(Linf(eps)), "logit_std": LogitStd(Linf(eps))}
    for label, attack in attacks.items():
        z = attack(model, x, y, seed=derive(seed, "attack"))
        fooled = {target: ~right(judge, z, y) for target, judge in targets.items()}
        arm = f"{name} / {label}"
        rows += [row(arm, f"transfer_{target}", found) for target, found in fooled.items()]
        rows.append(row(arm, "white_box", ~right(model, z, y)))
        mean = torch.stack(list(fooled.values())).double().mean(0)
        rows.append({"arm": arm, "metric": "transfer", "examples": [round(v, 4) for v in mean.tolist()]})
    return rows


@cache
def _trained(scale: str, network: str, seed: int) -> nn.Module:
    """A network of this experiment or of the zoo, trained plainly."""
    s = SCALES[scale]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & 0x7FFFFFFF)
        model = NETWORKS[network]() if network in NETWORKS else fresh(network, 10, seed)
    data = load_data("cifar10", split="train", limit=s["train"] + s["validation"], seed=0)
    data = data.subset(range(s["train"]))  # type: ignore[attr-defined]
    settings: dict[str, Any] = {k: s[k] for k in ("epochs", "batch", "optimizer", "accelerator")}
    return (
        Trainer(**settings, schedule="one_cycle")
        .fit(parse("standard", "recipe"), model, data, seed=seed)
        .last.to(s["device"])
    )


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def _cnn(norm: bool = True) -> nn.Module:
    """Three convolutions of 16, 32 and 64 channels."""
    layers: list[nn.Module] = [_Centred()]
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after) if norm else nn.Identity(), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


class _Skip(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _mixer(width: int = 48, depth: int = 3) -> nn.Module:
    """Patches of 4 pixels, mixed over places and over channels in turn."""
    layers: list[nn.Module] = [_Centred(), nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width)]
    for _ in range(depth):
        places = nn.Conv2d(width, width, 5, padding=2, groups=width)
        layers += [_Skip(places, nn.GELU(), nn.BatchNorm2d(width)), nn.Conv2d(width, width, 1), nn.GELU()]
        layers.append(nn.BatchNorm2d(width))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": _cnn, "cnn_plain": lambda: _cnn(norm=False), "mixer": _mixer}
