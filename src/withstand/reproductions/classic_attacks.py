"""The classic attacks side by side on small models of scikit-learn's digits.

The review's own tables could not be confirmed, so the claims are those of the papers behind its methods. Four networks
(plain; adversarially trained; the same with label smoothing 0.5; trained on single-step examples with smoothing) and a
multinomial logistic regression, whose exact robust accuracy is known, face every attack. Fixed radius: Linf 0.15 (0.05
for the logistic regression); the others report the distance of the nearest example found. AutoAttack and the attacks
for the nearest example, which cost most, face the plain and the adversarially trained network only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import FGSM, PGD
from withstand.data import load_data
from withstand.models.zoo.small import small_cnn
from withstand.protocols import Claim
from withstand.random import derive
from withstand.reproductions import classic_defences
from withstand.reproductions.attack_table import bits, fixed, nearest
from withstand.threats import Linf
from withstand.training.basic import fit

SYSTEM = "classic_attacks"

EPS, LOGISTIC_EPS = 0.15, 0.05
TRAININGS: dict[str, dict[str, Any]] = {
    "natural": {},
    "at": {"attack": PGD(Linf(EPS), steps=7)},
    "at_smoothed": {"attack": PGD(Linf(EPS), steps=7), "smoothing": 0.5},
    "fgsm_smoothed": {"attack": FGSM(Linf(EPS)), "smoothing": 0.5},
}
THOROUGH = ("natural", "at")
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "images": 60, "nearest": 10, "epochs": 8, "noise": 20, "square": 200, "queries": 500,
        "cw_steps": 100, "cw_searches": 4, "lbfgs_searches": 4, "draws": 10, "certify": 200,
    },
    "cpu": {
        "images": 200, "nearest": 30, "epochs": 20, "noise": 100, "square": 500, "queries": 1500,
        "cw_steps": 300, "cw_searches": 5, "lbfgs_searches": 8, "draws": 20, "certify": 1000,
    },
}  # fmt: skip

_AUTOATTACK = "Croce, Hein, 2020, arXiv 2003.01690: reported against AutoAttack's robust accuracy of published defences"
_MADRY = "Madry et al., 2018, arXiv 1706.06083"
_EVALUATION = "Carlini et al., On Evaluating Adversarial Robustness, 2019, arXiv 1902.06705, checklist"


def _claim(
    statement: str, source: str, arms: tuple[str, str], direction: Any, metric: str = "robust_accuracy"
) -> Claim:
    return Claim(statement, source, arms, metric, direction, SCALES)


CLAIMS: list[Claim] = [
    *(
        _claim(
            f"APGD on cross-entropy and on the targeted DLR breaks images that 50 steps of PGD leave standing ({model})",
            _AUTOATTACK,
            (f"{model} / pgd_ce_50", f"{model} / apgd_ce_t"),
            "lower",
        )
        for model in TRAININGS
    ),
    _claim(
        "Fifty steps of PGD overestimate robustness more after single-step training with label smoothing than after "
        "adversarial training",
        _AUTOATTACK,
        ("at / pgd_ce_50", "fgsm_smoothed / pgd_ce_50"),
        "higher",
        "overestimate",
    ),
    _claim(
        "Adversarial training raises robust accuracy", _MADRY, ("natural / autoattack", "at / autoattack"), "higher"
    ),
    _claim("Iterated steps break more than one step", _MADRY, ("at / fgsm", "at / pgd_ce_10"), "lower"),
    _claim(
        "A gradient step breaks more than random noise of its size", _EVALUATION, ("at / noise", "at / fgsm"), "lower"
    ),
    _claim(
        "White-box search breaks more than black-box search", _EVALUATION, ("at / square", "at / apgd_ce_t"), "lower"
    ),
    _claim(
        "Sign-OPT comes closer than OPT for the same queries",
        "Cheng et al., Sign-OPT, 2020, arXiv 1909.10773",
        ("natural / opt", "natural / sign_opt"),
        "lower",
        "distance",
    ),
    _claim(
        "Sign-OPT comes closer than the Boundary attack for the same queries",
        "Cheng et al., Sign-OPT, 2020, arXiv 1909.10773",
        ("natural / boundary", "natural / sign_opt"),
        "lower",
        "distance",
    ),
    _claim(
        "The attack of Carlini and Wagner finds closer examples than DeepFool",
        "Carlini, Wagner, 2017, arXiv 1608.04644, comparison with earlier attacks",
        ("natural / deepfool", "natural / carlini_wagner"),
        "lower",
        "distance",
    ),
    *(
        Claim(statement, source, arms, metric, direction, SCALES)
        for statement, source, arms, metric, direction in classic_defences.CLAIMS
    ),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the models with this seed and attack them; see the package for the rows."""
    s = SCALES[scale]
    train, (x, y) = digits("train"), digits("test", s["images"])
    rows: list[dict[str, Any]] = []
    for name, settings in TRAININGS.items():
        progress(f"{name}: training")
        model = network(seed)
        fit(model, train, s["epochs"], **settings, seed=seed)
        rows += fixed(name, model, x, y, EPS, s, seed, progress, thorough=name in THOROUGH)
        if name in THOROUGH:
            rows += nearest(name, model, x[: s["nearest"]], y[: s["nearest"]], s, seed, progress)
    rows += classic_defences.measure(train, x, y, EPS, s, seed, progress)
    progress("logistic: training")
    model = logistic(seed)
    fit(model, train, s["epochs"], lr=0.01, seed=seed)
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    exact = exact_robust(layer, x, y, LOGISTIC_EPS)
    rows.append({"arm": "logistic / exact", "metric": "robust_accuracy", "examples": bits(exact)})
    rows += fixed("logistic", model, x, y, LOGISTIC_EPS, s, seed, progress)
    return {"rows": rows}


def exact_robust(layer: nn.Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Which images no point within Linf eps and the box breaks, bool [N]: each class k has its worst point in closed form,
    clip(x + eps * sign(w_k - w_y), 0, 1)."""
    w, b = layer.weight.double(), layer.bias.double()
    flat = x.flatten(1).double()
    robust = torch.ones(len(x), dtype=torch.bool)
    for k in range(len(w)):
        push = w[k] - w[y]
        worst = (flat + eps * push.sign()).clamp(0, 1)
        robust &= (y == k) | ((worst * push).sum(1) + b[k] - b[y] < 0)
    return robust


def digits(split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] in [0, 1] and their labels."""
    data = load_data("digits", split=split)
    batch = data.batch(range(min(limit or len(data), len(data))))
    assert batch.y is not None
    return batch.x, batch.y


def network(seed: int) -> nn.Sequential:
    """The small CNN with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return small_cnn(8)


def logistic(seed: int) -> nn.Sequential:
    """Multinomial logistic regression."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
