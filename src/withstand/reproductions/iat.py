"""IAT beside adversarial training, the same without mixing, and mixup alone, on few of scikit-learn's digits.

The paper's figures are for CIFAR-10; here the network is small and learns from so few images that clean accuracy has room
to move. Without the unmixed half-and-half arm, what the clean half does would pass for what mixing does.
"""

from collections.abc import Callable
from typing import Any

from withstand.protocols import Claim
from withstand.reproductions.arms import Arm, cifar_scale, digits_scales, measure_arms

SYSTEM = "iat"
SCALES = digits_scales(train=200, epochs=60, batch=20) | cifar_scale()
ARMS = {
    "standard": Arm("standard"),
    "mixup": Arm("standard", {"augment": "mixup(1.0)"}),
    "pgd_at": Arm("pgd_at(attack={attack})"),
    "half_half": Arm("half_half(attack={attack})"),
    "iat": Arm("iat(attack={attack})"),
}

_SOURCE = (
    "Lamb et al., 2019, arXiv 1906.06784, abstract: CIFAR-10 error 4.43 standard, 12.32 adversarial training, 6.45 IAT"
)


def _claim(statement: str, first: str, last: str, metric: str, direction: Any = "higher") -> Claim:
    return Claim(statement, _SOURCE, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim("IAT gives back clean accuracy that adversarial training costs", "pgd_at", "iat", "accuracy"),
    _claim("It does so beyond what learning from clean images as well does", "half_half", "iat", "accuracy"),
    _claim("IAT keeps robustness that plain training lacks", "standard", "iat", "robust_accuracy"),
    _claim("Mixup alone does not give that robustness", "mixup", "iat", "robust_accuracy"),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the arms and judge them; see the package for the rows."""
    return measure_arms(ARMS, SCALES[scale], seed, progress)
