"""NoFrost beside the same mixture through batch norm, in the three forms that batch norm allows, on scikit-learn's digits.

Two residual networks of four blocks and equal widths, one with batch norm and one without normalisation, each at the
learning rate that suits it: zero-initialised branches and weight standardisation need a larger one, and the norm of
the gradient clipped at 1 (without it, 0.4 stays at chance). The published gain is
for ImageNet; how large it is depends on the form of the baseline, so all are here.
"""

from collections.abc import Callable
from typing import Any

from withstand.protocols import Claim
from withstand.reproductions.arms import Arm, cifar_scale, digits_scales, measure_arms

SYSTEM = "nofrost"
SCALES = digits_scales(network="digits_preact", epochs=20, batch=50) | cifar_scale()
_MIX = "attack={attack}"
_NF: dict[str, Any] = {"optimizer": "sgd(0.4, weight_decay=5e-5)", "clip_norm": 1.0}
ARMS = {
    "bn_two_pass": Arm(f"half_half({_MIX})"),
    "bn_joint": Arm(f"half_half({_MIX}, norm='joint')"),
    "bn_dual": Arm("advprop(attack={attack}, target='true')"),
    "bn_adversarial_only": Arm(f"pgd_at({_MIX})"),
    "nf_standard": Arm("standard", _NF, "digits_nf"),
    "nofrost": Arm(f"nofrost({_MIX})", _NF, "digits_nf"),
    "nofrost_low_rate": Arm(
        f"nofrost({_MIX})", {"optimizer": "sgd(0.1, weight_decay=5e-5)", "clip_norm": 1.0}, "digits_nf"
    ),
}

_PAPER = "Wang et al., 2022, arXiv 2207.01156, abstract: ImageNet, ResNet-50, clean 59.28 -> 74.06, PGD 13.57 -> 23.56"


def _claim(statement: str, first: str, last: str, metric: str, direction: Any = "higher") -> Claim:
    return Claim(statement, _PAPER, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim(
        "Without normalisation the mixture has more clean accuracy (two passes)", "bn_two_pass", "nofrost", "accuracy"
    ),
    _claim("... and more robust accuracy (two passes)", "bn_two_pass", "nofrost", "robust_accuracy"),
    _claim("The same against the joint pass: clean", "bn_joint", "nofrost", "accuracy"),
    _claim("The same against the joint pass: robust", "bn_joint", "nofrost", "robust_accuracy"),
    _claim("The mixture makes the network robust", "nf_standard", "nofrost", "robust_accuracy"),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the arms and judge them; see the package for the rows."""
    return measure_arms(ARMS, SCALES[scale], seed, progress)
