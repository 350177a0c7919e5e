"""TSA-STAT beside additive attacks on series classifiers, at equal steps.

A CNN as in the official code, trained on UCR and UEA sets; every attack pulls test series towards class 0. Success alone can
be had by any large change, and a small feature distance by none at all, so both are measured, and success within a feature
distance of `WITHIN`: the weighted sum of the threat `statistics` over mean, deviation, skew, kurtosis and RMS of series of
mean 0 and deviation 1. `pgd_best` takes for each series the radius at which PGD succeeds with the smallest feature distance,
at the cost of as many runs as there are radii. `pgd_priced_best` is the same with TSA-STAT's own loss as PGD's objective,
ended at success within `WITHIN`: it tells the loss from the way of descent. TSA-STAT of degree 0 is itself an additive
change, in no ball. `tsa_stat_universal` has one transformation for each class, found on the mean loss of the judged series;
`tsa_stat_universal_new` one that was found on training series and is judged on these, unseen; `tsa_stat_universal_random`
is where that search begins, one random shift of each class. The paper's tables could not be read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from withstand.attacks import FGSM, PGD, TSASTAT, Attack, CarliniWagner
from withstand.attacks.tsa_stat import universal_coefficients
from withstand.data import load_data
from withstand.hardening.half_half import HalfHalf
from withstand.hardening.harden import harden
from withstand.hardening.standard import Standard
from withstand.models.zoo.series import SeriesCNN
from withstand.objectives import Penalised, TargetedCrossEntropy, TargetedMargin
from withstand.parameterisations import Polynomial
from withstand.protocols import Claim
from withstand.random import derive
from withstand.reproductions.arms import right, row
from withstand.statistics import Statistics
from withstand.threats import L2, Linf
from withstand.training import Adam, Trainer
from withstand.training.recipe import Recipe

SYSTEM = "tsa_stat"
TARGET, WITHIN = 0, 0.1
RADII = (0.1, 0.25, 0.5, 1.0, 2.0)
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"sets": ["SyntheticControl"], "examples": 10, "steps": 100, "epochs": 6, "train": 150, "inner": 3},
    "cpu": {
        "sets": ["SyntheticControl", "BasicMotions"], "examples": 20, "steps": 200, "epochs": 12, "train": 300, "inner": 5,
    },
    "gpu": {
        "sets": ["SyntheticControl", "BasicMotions", "CBF", "Epilepsy"], "examples": 100, "steps": 1000, "epochs": 100,
        "train": 600, "inner": 10, "device": "cuda",
    },
}  # fmt: skip
HARDENED: dict[str, Callable[[int], Attack]] = {
    "pgd_trained": lambda steps: PGD(Linf(0.5), steps=steps),
    "tsa_trained": lambda steps: TSASTAT(steps=steps),
}

_PAPER = "Belkhouja, Doppa, 2022, arXiv 2207.04307, abstract"
_CONTROL = "our control; not in the paper"
_OFFICIAL = "Belkhouja, Doppa, 2022, arXiv 2207.04307, official code: the loss has a term for the statistics"


def _claim(
    statement: str, first: str, last: str, metric: str, direction: Any = "higher", source: str = _PAPER
) -> Claim:
    return Claim(statement, source, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim(f"TSA-STAT fools within a feature distance of {WITHIN} where PGD at its best radius does not", "pgd_best",
           "tsa_stat", "success_within"),
    _claim("... where the attack of Carlini and Wagner does not", "carlini_wagner", "tsa_stat", "success_within"),
    _claim("... where PGD with the same loss, at its best radius, does not", "pgd_priced_best", "tsa_stat",
           "success_within"),
    _claim("Its points lie closer in features than those of PGD 1.0", "pgd_1", "tsa_stat", "feature_distance", "lower"),
    _claim("Without the term for statistics, the feature distance is larger", "tsa_stat", "tsa_stat_unpriced",
           "feature_distance", "higher", _OFFICIAL),
    _claim("One transformation for each class, found on training series, fools unseen ones more than random shifts do",
           "tsa_stat_universal_random", "tsa_stat_universal_new", "targeted_success", source=_CONTROL),
    _claim("... within the feature distance less often than one for each series", "tsa_stat", "tsa_stat_universal_new",
           "success_within", "lower", _CONTROL),
    _claim("Training with TSA-STAT lowers its success", "tsa_stat", "tsa_trained / tsa_stat", "targeted_success", "lower"),
    _claim("... and its success within the feature distance", "tsa_stat", "tsa_trained / tsa_stat", "success_within",
           "lower"),
    _claim("... more than training with PGD does", "pgd_trained / tsa_stat", "tsa_trained / tsa_stat", "success_within",
           "lower"),
]  # fmt: skip


def attacks(steps: int) -> dict[str, Attack]:
    """The arms that are run as they are, each with `steps` gradient steps but for FGSM."""
    pull = TargetedCrossEntropy(target=TARGET)
    margin = TargetedMargin(target=TARGET, kappa=1.0)
    priced = Penalised(margin, Statistics(WITHIN))
    return {
        "fgsm_0.5": FGSM(Linf(0.5), objective=pull),
        **{f"pgd_{eps:g}": PGD(Linf(eps), steps=steps, objective=pull) for eps in RADII},
        **{f"pgd_priced_{eps:g}": PGD(Linf(eps), steps=steps, objective=priced) for eps in RADII[1:]},
        "carlini_wagner": CarliniWagner(L2(), steps=steps // 5, searches=5, lr=0.05, c=1.0, objective=margin),
        "tsa_stat": TSASTAT(target=TARGET, steps=steps),
        "tsa_stat_1": TSASTAT(target=TARGET, steps=steps, degree=1),
        "tsa_stat_2": TSASTAT(target=TARGET, steps=steps, degree=2),
        "tsa_stat_unpriced": TSASTAT(target=TARGET, steps=steps, stat_weight=0.0),
        "tsa_stat_universal": TSASTAT(target=TARGET, steps=steps, universal=True),
    }


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the networks and attack them; see the package for the rows."""
    s = SCALES[scale]
    found: dict[tuple[str, str], list[Tensor]] = {}

    def keep(arm: str, metrics: Mapping[str, Tensor]) -> None:
        for metric, examples in metrics.items():
            found.setdefault((arm, metric), []).append(examples)

    for name in s["sets"]:
        test = load_data(name, split="test", seed=seed).batch(range(len(load_data(name)))).to(s.get("device", "cpu"))
        assert test.y is not None
        chosen = (test.y != TARGET).nonzero().flatten()[: s["examples"]]
        x, y = test.x[chosen], test.y[chosen]
        progress(f"{name}: training")
        model = trained(name, Standard(), s, seed)
        keep("clean", {"accuracy": right(model, test.x, test.y)})
        families: dict[str, list[dict[str, Tensor]]] = {"pgd_best": [], "pgd_priced_best": []}
        for arm, attack in attacks(s["steps"]).items():
            progress(f"{name}: {arm}")
            metrics = judged(attack, model, x, y, seed)
            keep(arm, metrics)
            if arm.startswith("pgd_"):
                families["pgd_priced_best" if arm.startswith("pgd_priced") else "pgd_best"].append(metrics)
        for arm, radii in families.items():
            keep(arm, best_of(radii))
        progress(f"{name}: universal, on training series")
        for arm, z in universal(name, model, x, y, s, seed).items():
            keep(arm, measured(model, x, z))
        for arm, inner in HARDENED.items():
            progress(f"{name}: {arm}")
            hardened = trained(name, HalfHalf(attack=inner(s["inner"])), s, seed)
            keep(arm, {"accuracy": right(hardened, test.x, test.y)})
            keep(f"{arm} / tsa_stat", judged(attacks(s["steps"])["tsa_stat"], hardened, x, y, seed))
            keep(f"{arm} / pgd_0.5", judged(attacks(s["steps"])["pgd_0.5"], hardened, x, y, seed))
    return {"rows": [_row(arm, metric, torch.cat(parts)) for (arm, metric), parts in found.items()]}


def judged(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Success, feature distance and Linf of the points found; a point that misses the target stands with its distance."""
    return measured(model, x, attack.run(model, x, y, box=None, seed=derive(seed, "attack")).x_adv)


def measured(model: nn.Module, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    """What is told of points z of series x."""
    hit = right(model, z, torch.full((len(x),), TARGET, device=x.device))
    distance = Statistics().distance(x, z)
    linf = (z - x).abs().flatten(1).amax(1)
    within = hit & (distance <= WITHIN)
    return {"targeted_success": hit, "success_within": within, "feature_distance": distance, "linf": linf}


def universal(name: str, model: nn.Module, x: Tensor, y: Tensor, s: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The series x moved by the transformation of their class, as found on training series, and as begun with."""
    train = load_data(name, split="train", limit=s["train"], seed=seed)
    batch = train.batch(range(len(train))).to(x.device)
    assert batch.y is not None
    few = torch.cat([(batch.y == c).nonzero().flatten()[: s["examples"]] for c in y.unique()])
    found = {}
    for arm, steps in {"tsa_stat_universal_new": s["steps"], "tsa_stat_universal_random": 1}.items():
        lr = 0.5 if steps > 1 else 1e-9
        attack = TSASTAT(target=TARGET, steps=steps, lr=lr, universal=True)
        result = attack.run(model, batch.x[few], batch.y[few], box=None, seed=derive(seed, "attack"))
        shifts = universal_coefficients(result, batch.y[few], y)
        found[arm] = Polynomial(0).decode({"coefficients": shifts}, x)
    return found


def best_of(radii: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """For each series the radius that succeeds with the smallest feature distance; the smallest distance if none does."""
    stacked = {metric: torch.stack([r[metric] for r in radii]) for metric in radii[0]}
    rank = stacked["feature_distance"] + torch.where(stacked["targeted_success"], 0.0, 1e6)
    first = rank.argmin(0, keepdim=True)
    return {metric: v.gather(0, first)[0] for metric, v in stacked.items()}


def trained(name: str, recipe: Recipe, s: Mapping[str, Any], seed: int) -> nn.Module:
    """The official code's network, trained on a set by a recipe."""
    data = load_data(name, split="train", limit=s["train"], seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights") & 0x7FFFFFFF)
        network = SeriesCNN(data.space.shape[0] or 1, len(data.classes))  # type: ignore[index]
    device = s.get("device", "cpu")
    trainer = Trainer(epochs=s["epochs"], batch=32, optimizer=Adam(1e-3), accelerator=device)
    return harden(network, data, recipe, trainer=trainer, validation=None, seed=seed).module.to(device).eval()


def _row(arm: str, metric: str, examples: Tensor) -> dict[str, Any]:
    if examples.dtype == torch.bool:
        return row(arm, metric, examples)
    return {"arm": arm, "metric": metric, "examples": [round(v, 4) for v in examples.tolist()]}
