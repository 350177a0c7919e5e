"""The attacks of the review as one table: what each model keeps under those of a fixed radius, and how near the others
come."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from withstand.attacks import (
    APGD,
    APGDT,
    FGSM,
    JSMA,
    LBFGS,
    OPT,
    PGD,
    ZOO,
    Attack,
    AutoAttack,
    Boundary,
    CarliniWagner,
    DeepFool,
    Noise,
    SignOPT,
    Square,
)
from withstand.objectives import Margin
from withstand.threats import Linf


def fixed(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    s: Mapping[str, Any],
    seed: int,
    progress: Callable[[str], None],
    thorough: bool = False,
) -> list[dict[str, Any]]:
    """Rows of what stands after every attack of the radius; thorough: after AutoAttack as well."""
    clean = right(model, x, y)
    rows = [{"arm": f"{name} / clean", "metric": "robust_accuracy", "examples": bits(clean)}]
    stands = {}
    attacks = fixed_attacks(eps, s)
    if thorough:
        attacks["autoattack"] = [AutoAttack(Linf(eps), queries=s["square"])]
    for label, chain in attacks.items():
        progress(f"{name}: {label}")
        left = clean.clone()
        for attack in chain:
            todo = left.nonzero().flatten()
            if len(todo):
                z = attack(model, x[todo], y[todo], seed=seed, ids=todo)
                left[todo] = right(model, z, y[todo])
        stands[label] = left
        rows.append({"arm": f"{name} / {label}", "metric": "robust_accuracy", "examples": bits(left)})
    over = stands["pgd_ce_50"] & ~stands["apgd_ce_t"]
    return [*rows, {"arm": f"{name} / pgd_ce_50", "metric": "overestimate", "examples": bits(over)}]


def nearest(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    s: Mapping[str, Any],
    seed: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Distances; 0 where the clean image is wrong, that of the farthest corner where nothing was found."""
    rows = []
    for label, attack in nearest_attacks(s).items():
        progress(f"{name}: {label}")
        r = attack.run(model, x, y, seed=seed)
        far = attack.threat.distance(x, (x < 0.5).to(x))
        metric = "values_changed" if label == "jsma" else "distance"
        found = torch.where(r.success, r.distance, far)
        passes = float((r.forwards + r.backwards).double().mean())
        rows.append(
            {"arm": f"{name} / {label}", "metric": metric, "examples": [round(v, 4) for v in found.tolist()]}
            | {"success": float(r.success.double().mean()), "passes": round(passes, 1)}
        )
    return rows


def fixed_attacks(eps: float, s: Mapping[str, Any]) -> dict[str, list[Attack]]:
    """The attacks of one radius; where there are several, each faces what the ones before it left standing."""
    t = Linf(eps)
    return {
        "noise": [Noise(t, samples=s["noise"])],
        "fgsm": [FGSM(t)],
        "pgd_ce_10": [PGD(t, steps=10, step=0.25)],
        "pgd_ce_50": [PGD(t, steps=50, step=0.1)],
        "cw_pgd_50": [PGD(t, steps=50, step=0.1, objective=Margin())],
        "deepfool_linf": [DeepFool(t)],
        "square": [Square(t, queries=s["square"])],
        "apgd_ce_t": [APGD(t), APGDT(t)],
    }


def nearest_attacks(s: Mapping[str, Any]) -> dict[str, Attack]:
    """The attacks that look for the nearest example."""
    return {
        "deepfool": DeepFool(),
        "carlini_wagner": CarliniWagner(steps=s["cw_steps"], searches=s["cw_searches"], c=0.1, lr=0.02),
        "lbfgs": LBFGS(searches=s["lbfgs_searches"]),
        "zoo": ZOO(queries=s["queries"], lr=0.05, coordinates=8),
        "opt": OPT(queries=s["queries"]),
        "sign_opt": SignOPT(queries=s["queries"]),
        "boundary": Boundary(queries=s["queries"]),
        "jsma": JSMA(gamma=1.0),
    }


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which examples the model has right, bool [N]."""
    with torch.no_grad():
        return model(x).argmax(1) == y


def bits(values: Tensor) -> str:
    """Yes and no as a text of 1 and 0."""
    return "".join(np.where(values.numpy(), "1", "0"))
