"""AdvProp beside plain training and the same mixture through one batch norm, on few of scikit-learn's digits.

The paper's figures are for ImageNet and radii of 1 to 4/255. Here the radius is large enough to hurt a shared batch norm.
"""

from collections.abc import Callable
from typing import Any

from withstand.protocols import Claim
from withstand.reproductions.arms import Arm, cifar_scale, digits_scales, measure_arms

SYSTEM = "advprop"
SCALES = digits_scales(train=200, epochs=60, batch=20) | cifar_scale()
_ATTACK = "attack=pgd(linf({eps}), steps=5, clean_starts=0.2)"
ARMS = {
    "standard": Arm("standard"),
    "shared": Arm(f"advprop({_ATTACK}, branches='shared')"),
    "advprop": Arm(f"advprop({_ATTACK})"),
    "advprop_auxiliary": Arm(f"advprop({_ATTACK}, ship='adversarial')"),
    "pgd_at": Arm("pgd_at(attack={attack})"),
}

_PAPER = "Xie et al., 2020, arXiv 1911.09665"


def _claim(statement: str, first: str, last: str, metric: str, direction: Any = "higher") -> Claim:
    return Claim(statement, _PAPER, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim("The main branch is more accurate than one batch norm for both kinds", "shared", "advprop", "accuracy"),
    _claim("The main branch is more accurate than plain training", "standard", "advprop", "accuracy"),
    _claim("It is more accurate on corrupted images than plain training", "standard", "advprop", "corruption_accuracy"),
    _claim(
        "The two branches differ: the auxiliary one is the robust one",
        "advprop",
        "advprop_auxiliary",
        "robust_accuracy",
    ),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the arms and judge them; see the package for the rows."""
    return measure_arms(ARMS, SCALES[scale], seed, progress)
