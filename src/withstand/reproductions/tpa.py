"""TPA beside the transfer attacks that it is compared with, from three CIFAR-10 networks to the six others each.

Pretrained networks: standard ResNets of 20, 32 and 56 layers, a WideResNet, a LeNet, and two that were trained
adversarially for 2/255. Points are made on one and judged, rounded to 8 bits, on all others; only test images that all
seven get right are taken, others for each seed. `transfer_success` is, for each image, the share of the six targets that
are wrong; `on <target>` is one of them, `surrogate_success` the network that the points were made on, and
`gradient_norm` the mean length of its gradient at neighbours of the point: the flatness that TPA is after.

All attacks take twenty steps of a tenth of the radius, as in the paper, from the clean point. On the two small surrogates,
those that need one pass per step are also run with the 420 passes of TPA (`..._420`); VMI needs as many by itself.
Controls: TPA without its penalty (`tpa_unpenalised`), without the momentum on signs (`tpa_plain_steps`), and with the mean
gradient of neighbours in place of the penalty (`neighbour_mean`). The paper's equations are run with the paper's weight of
5, and with 0.04 (`equations_0.04`), which gives the difference of gradients the share that it has in the authors' code.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import DI, MI, PGD, TPA, VMI, Attack
from withstand.attacks.transfer.neighbours import Variance
from withstand.attacks.transfer.tpa import neighbourhood_gradient_norm
from withstand.data import load_data
from withstand.data.load import data_root
from withstand.models import load_model
from withstand.protocols import Claim
from withstand.random import derive
from withstand.registry import replace
from withstand.reproductions.arms import right, row
from withstand.threats import Linf

SYSTEM = "tpa"

NETWORKS = {  # file in the folder of weights: network of the zoo
    "resnet20": "cifar_resnet20",
    "resnet32": "cifar_resnet32",
    "resnet56": "cifar_resnet56",
    "wrn16_1_badnet": "wrn16_1",
    "lenet": "lenet",
    "resnet4b_adv": "cifar_resnet4b",
    "cnn_a_adv2": "cnn_a",
}
RADII = {"8": 8 / 255, "16": 16 / 255}
CONTROLS_AT, SMALL = "8", ("lenet", "cnn_a_adv2")
"""The radius at which the controls are run as well, and the surrogates that are quick enough for all of them."""
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"images": {"resnet20": 4, "lenet": 8, "cnn_a_adv2": 8}, "steps": 3, "samples": 2},
    "cpu": {"images": {"resnet20": 20, "lenet": 60, "cnn_a_adv2": 60}, "steps": 20, "samples": 10},
    "gpu": {
        "images": {"resnet20": 500, "lenet": 500, "cnn_a_adv2": 500}, "steps": 20, "samples": 10, "device": "cuda",
    },
}  # fmt: skip
_PAPER = "Fan, Li, Chen, Zhou, Li, 2024, arXiv 2311.06423, table 1"
_FLAT = "Fan, Li, Chen, Zhou, Li, 2024, arXiv 2311.06423, section 4: the neighbourhood is to be flat"


def _claim(
    statement: str,
    surrogate: str,
    eps: str,
    first: str,
    metric: str = "transfer_success",
    direction: Any = "higher",
    source: str = _PAPER,
) -> Claim:
    arms = tuple(f"{surrogate} {eps} / {arm}" for arm in (first, "tpa"))
    return Claim(f"{statement} ({surrogate}, {eps}/255)", source, arms, metric, direction, SCALES)


CLAIMS = [
    *(
        _claim(f"TPA transfers better than {said}", surrogate, eps, first)
        for surrogate in ("resnet20", "lenet", "cnn_a_adv2")
        for eps in RADII
        for first, said in (("pgd", "PGD"), ("mi", "MI-FGSM"), ("di", "DI"), ("vmi", "VMI, of as many passes"))
    ),
    *(
        _claim(f"... than {said}, at equal passes", surrogate, CONTROLS_AT, first)
        for surrogate in SMALL
        for first, said in (("pgd_420", "PGD"), ("mi_420", "MI-FGSM"), ("di_420", "DI"))
    ),
    *(
        _claim(f"Its penalty is what does it: more than {said}", surrogate, CONTROLS_AT, first, source=_FLAT)
        for surrogate in ("resnet20", "lenet", "cnn_a_adv2")
        for first, said in (
            ("tpa_unpenalised", "with penalty 0"),
            ("neighbour_mean", "the mean gradient of neighbours"),
        )
    ),
    *(
        _claim("Its points lie in flatter surroundings than with penalty 0", surrogate, CONTROLS_AT, "tpa_unpenalised",
               "gradient_norm", "lower", _FLAT)
        for surrogate in ("resnet20", "lenet", "cnn_a_adv2")
    ),
]  # fmt: skip


def attacks(eps: str, steps: int, samples: int, surrogate: str) -> dict[str, Attack]:
    """The arms of one radius; the long list on small surrogates at the radius of the controls."""
    t, passes = Linf(RADII[eps]), steps * (1 + 2 * samples)
    made: dict[str, Attack] = {
        "pgd": PGD(t, steps=steps, step=0.1, random_start=False, keep="last", active=False),
        "mi": MI(t, steps=steps, step=0.1),
        "di": DI(t, steps=steps, step=0.1),
        "vmi": VMI(t, steps=steps, step=0.1, views=(Variance(samples=2 * samples),)),
        "tpa": TPA(t, steps=steps, samples=samples),
    }
    if eps != CONTROLS_AT:
        return made
    made |= {
        "tpa_unpenalised": TPA(t, weight=0.0, steps=steps, samples=1),
        "neighbour_mean": TPA(t, weight=1.0, probe=1e-9, steps=steps, samples=samples),
    }
    if surrogate not in SMALL:
        return made
    return made | {
        **{f"{name}_420": replace(made[name], steps=passes) for name in ("pgd", "mi", "di")},
        "tpa_plain_steps": TPA(t, decay=0.0, steps=steps, samples=samples),
        "equations_5": TPA(t, variant="paper", steps=steps, samples=samples),
        "equations_0.04": TPA(t, variant="paper", weight=0.04, steps=steps, samples=samples),
    }


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Attack every surrogate; see the package for the rows."""
    s = SCALES[scale]
    device = s.get("device", "cpu")
    nets = {name: net.to(device).eval().requires_grad_(False) for name, net in networks().items()}
    x, y = (part.to(device) for part in common(nets, max(s["images"].values()), seed))
    rows = []
    for surrogate, n in s["images"].items():
        for eps in RADII:
            for name, attack in attacks(eps, s["steps"], s["samples"], surrogate).items():
                progress(f"{surrogate} {eps}/255: {name}")
                rows += judged(f"{surrogate} {eps} / {name}", attack, surrogate, nets, x[:n], y[:n], seed)
    return {"rows": rows}


def judged(
    arm: str, attack: Attack, surrogate: str, nets: dict[str, nn.Module], x: Tensor, y: Tensor, seed: int
) -> list[dict[str, Any]]:
    """The rows of one attack on one surrogate."""
    found = attack.run(nets[surrogate], x, y, seed=derive(seed, "attack"))
    z = (found.x_adv * 255).round() / 255
    fooled = {name: ~right(net, z, y) for name, net in nets.items()}
    targets = {name: wrong for name, wrong in fooled.items() if name != surrogate}
    norm = neighbourhood_gradient_norm(nets[surrogate], z, y, 16 / 255, 5, derive(seed, "norm"))
    passes = round(float((found.forwards + found.backwards).double().mean()) / 2)
    return [
        _numbers(arm, "transfer_success", torch.stack(list(targets.values())).double().mean(0)) | {"passes": passes},
        row(arm, "surrogate_success", fooled[surrogate]),
        _numbers(arm, "gradient_norm", norm),
        *(row(arm, f"on {name}", wrong) for name, wrong in targets.items()),
    ]


def networks() -> dict[str, nn.Module]:
    """The seven networks with their weights, from the data folder."""
    folder = data_root() / "weights"
    loaded = {name: load_model(f"zoo:{zoo}", weights=folder / f"cifar10_{name}.pth") for name, zoo in NETWORKS.items()}
    return {name: target.module for name, target in loaded.items() if target.module is not None}


def common(nets: dict[str, nn.Module], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n test images that all networks get right, others for each seed from 0 on, and their labels."""
    data = load_data("cifar10", split="test", limit=6000)
    images, labels, need = [], [], n * (seed + 1)
    for first in range(0, len(data), 500):
        batch = data.batch(range(first, min(first + 500, len(data))))
        assert batch.y is not None
        device = next(next(iter(nets.values())).parameters()).device
        held = torch.stack([right(net, batch.x.to(device), batch.y.to(device)) for net in nets.values()]).all(0).cpu()
        images.append(batch.x[held])
        labels.append(batch.y[held])
        if sum(map(len, labels)) >= need:
            break
    return torch.cat(images)[need - n : need], torch.cat(labels)[need - n : need]


def _numbers(arm: str, metric: str, values: Tensor) -> dict[str, Any]:
    return {"arm": arm, "metric": metric, "examples": [round(v, 4) for v in values.tolist()]}
