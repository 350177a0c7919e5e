"""MDProp on handwritten characters and on cars, whose classes were never seen.

Characters (training on five alphabets of Omniglot, searches among the characters of three others): small networks learn
from scratch, for the same number of steps, with the Multi-Similarity loss: plain; with adversarial twins through the same
batch norm (of one target, or of both kinds that MDProp takes); with one further batch norm for twins of one kind; and
MDProp. Plain training and MDProp are repeated with S2SD and with Proxy-Anchor. Judged are the last weights, through the norm
that ships, in eval mode: Recall@1 of clean queries, and of queries that five steps of PGD push away from their own
embedding, at 0.05 and 0.1, or lead towards one other (multi-targeted: five others), among clean images; and pi_ratio, how
wide a class lies beside the space between classes.

Cars ("cars / ...", 20 models of cars learned from, searches among 20 others): as in the paper, networks begin with weights
(of CIFAR-10; there of ImageNet). Every second query is attacked, at 2/255, the radius of training, and at twice that. The
learning rate of each arm, 1e-3 or 3e-4, is that by which a network that learned from 12 of the 20 models found more cars
among the other 8 (clean Recall@1 after about as many steps, mean of the last two epochs, one seed): 3e-4 for plain training,
by a hair, and 1e-3 for the others. "cars / plain 1e-3" is the control.

The paper trains ResNet-50 from ImageNet weights on birds, cars and products, at a radius of 0.00225; small binary drawings
need a larger one (0.05), and so do photographs of 32 pixels.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.protocols import Claim
from withstand.random import derive
from withstand.reproductions import cars
from withstand.reproductions.characters import characters, densities, embedded, embedder, found_first, row
from withstand.threats import Linf

SYSTEM = "mdprop"

_AX = "attack=pgd(linf({eps}), steps=1, step=1.0, random_start=0.0005), dim={dim}"
_S2SD = "s2sd(dims=(128, 256), delay=100)"
ARMS = {
    "plain": "metric(dim={dim})",
    "one_norm_single": f"mdprop({_AX}, kinds=(('single', 1),), norms='shared')",
    "one_norm_both": f"mdprop({_AX}, norms='shared')",
    "two_norms_single": f"mdprop({_AX}, kinds=(('single', 1),))",
    "two_norms_multi": f"mdprop({_AX}, kinds=(('multi', 5),))",
    "mdprop": f"mdprop({_AX})",
    "mdprop_unadversarial": f"mdprop({_AX}, kinds=(('single', 1), ('multi', 5), ('own', towards_own_class())))",
    "plain / s2sd": f"metric({_S2SD}, dim={{dim}})",
    "mdprop / s2sd": f"mdprop({_S2SD}, {_AX})",
    "plain / proxy_anchor": "metric('proxy_anchor', dim={dim})",
    "mdprop / proxy_anchor": f"mdprop('proxy_anchor', {_AX})",
}
_CAR_BATCH = {"batch": 32, "sampler": "m_per_class(4)", "eps": 2 / 255}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"size": 14, "drawers": 8, "width": 8, "dim": 16, "epochs": 1, "optimizer": "adam(1e-3)", "eps": 0.05,
              "test": 4, "cars": {"size": 16, "dim": 16, "epochs": 1, **_CAR_BATCH, "every": 20}},
    "cpu": {"size": 14, "drawers": 20, "width": 24, "dim": 64, "epochs": 8, "optimizer": "adam(1e-3)", "eps": 0.05,
            "test": 10, "cars": {"size": 32, "dim": 64, "epochs": 5, **_CAR_BATCH, "every": 2}},
    "gpu": {"size": 28, "drawers": 20, "width": 64, "dim": 128, "epochs": 50, "optimizer": "adam(1e-3)", "eps": 0.05,
            "test": 20, "accelerator": "cuda",
            "cars": {"size": 64, "dim": 128, "epochs": 60, **_CAR_BATCH, "every": 1, "accelerator": "cuda"}},
}  # fmt: skip
_CAR_AX = "attack=pgd(linf({eps}), steps=1, step=1.0, random_start=6.5e-5), dim={dim}"
CARS = {
    "cars / plain": ("metric(dim={dim})", 3e-4),
    "cars / plain 1e-3": ("metric(dim={dim})", 1e-3),
    "cars / one_norm_both": (f"mdprop({_CAR_AX}, norms='shared')", 1e-3),
    "cars / mdprop": (f"mdprop({_CAR_AX})", 1e-3),
}

_PAPER = "Singh et al., 2023, arXiv 2211.16253, abstract: clean Recall@1 and robustness rise together"
_CONTROL = "our control; not in the paper"


def _claim(
    statement: str, first: str, last: str, metric: str, source: str = _PAPER, direction: Any = "higher"
) -> Claim:
    return Claim(statement, source, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim("MDProp finds more clean queries than plain training", "plain", "mdprop", "recall_at_1"),
    _claim("... more attacked queries, at the radius of training", "plain", "mdprop", "robust_recall_at_1"),
    _claim("... at twice that radius", "plain", "mdprop", "robust_recall_at_1_twice"),
    _claim("... and makes classes denser", "plain", "mdprop", "pi_ratio", direction="lower"),
    _claim("Norms of their own are better for clean queries than one for all, on the same examples",
           "one_norm_both", "mdprop", "recall_at_1"),
    _claim("... and for attacked ones", "one_norm_both", "mdprop", "robust_recall_at_1", _CONTROL),
    _claim("Multi-targeted examples beside single-targeted ones help clean queries", "two_norms_single", "mdprop",
           "recall_at_1"),
    _claim("... and attacked ones", "two_norms_single", "mdprop", "robust_recall_at_1"),
    _claim("Unadversarial examples help clean queries", "mdprop", "mdprop_unadversarial", "recall_at_1"),
    _claim("With S2SD, MDProp finds more clean queries", "plain / s2sd", "mdprop / s2sd", "recall_at_1"),
    _claim("... and more attacked ones", "plain / s2sd", "mdprop / s2sd", "robust_recall_at_1"),
    _claim("With Proxy-Anchor, MDProp finds more clean queries", "plain / proxy_anchor", "mdprop / proxy_anchor",
           "recall_at_1", _CONTROL),
    _claim("... and more attacked ones", "plain / proxy_anchor", "mdprop / proxy_anchor", "robust_recall_at_1", _CONTROL),
    _claim("On cars, from weights, MDProp finds more clean queries than plain training", "cars / plain", "cars / mdprop",
           "recall_at_1"),
    _claim("... than plain training at the learning rate of MDProp", "cars / plain 1e-3", "cars / mdprop", "recall_at_1",
           _CONTROL),
    _claim("... more attacked queries, at the radius of training", "cars / plain", "cars / mdprop", "robust_recall_at_1"),
    _claim("... at twice that radius", "cars / plain", "cars / mdprop", "robust_recall_at_1_twice"),
    _claim("On cars, norms of their own are better for clean queries than one for all", "cars / one_norm_both",
           "cars / mdprop", "recall_at_1"),
    _claim("... and for attacked ones", "cars / one_norm_both", "cars / mdprop", "robust_recall_at_1", _CONTROL),
]  # fmt: skip


def measure_characters(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train every arm on characters and judge it; see the package for the rows."""
    s = SCALES[scale]
    test = characters(None, s["size"], s["test"])
    batch = test.batch(range(len(test))).to(s.get("accelerator", "cpu"))
    assert batch.y is not None
    rows = []
    for arm, recipe in ARMS.items():
        progress(f"{arm}: training")
        rows += judged(arm, embedder(recipe, s, seed), batch.x, batch.y, s["eps"], seed)
    return {"rows": rows}


def measure_cars(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train every arm on cars and judge it; every second query is attacked."""
    s = SCALES[scale]["cars"]
    x, y = cars.searched(s)
    rows = []
    for arm, (recipe, rate) in CARS.items():
        progress(f"{arm}: training")
        rows += judged(arm, cars.embedder(recipe, rate, s, seed), x, y, s["eps"], seed, s["every"])
    return {"rows": rows}


PARTS = {"characters": measure_characters, "cars": measure_cars}


def judged(
    arm: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int, every: int = 1
) -> list[dict[str, Any]]:
    """Recall@1, clean, of every image; attacked, of each `every`-th; pi_ratio of every class."""
    held = embedded(model.to(x.device), x)
    rows = [row(arm, "recall_at_1", found_first(held, held, y)), row(arm, "pi_ratio", densities(held, y))]
    far = {"robust_recall_at_1": PGD(Linf(eps), steps=5, objective="push_away")}
    far["robust_recall_at_1_twice"] = PGD(Linf(2 * eps), steps=5, objective="push_away")
    last: dict[str, Any] = {"keep": "last", "active": False}
    near = {
        "robust_recall_at_1_single": PGD(Linf(eps), steps=5, objective="multi_target(1)", **last),
        "robust_recall_at_1_multi": PGD(Linf(eps), steps=5, objective="multi_target(5)", **last),
    }
    for metric, attack in (far | near if every == 1 else far).items():
        moved, asked = attack(model, x[::every], y[::every], seed=derive(seed, "judge")), held.clone()
        asked[::every] = embedded(model, moved)
        rows.append(row(arm, metric, found_first(asked, held, y)[::every]))
    return rows
