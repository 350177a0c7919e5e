"""DIAL beside the same losses without its domain head, on scikit-learn's digits.

Beside accuracies, a fresh linear probe is trained to tell adversarial features from natural ones of the finished network:
what the domain head is for is that it cannot.
"""

from collections.abc import Callable
from typing import Any

from withstand.protocols import Claim
from withstand.reproductions.arms import Arm, cifar_scale, digits_scales, measure_arms
from withstand.reproductions.probes import domain_probe

SYSTEM = "dial"
SCALES = digits_scales() | cifar_scale()
ARMS = {
    "pgd_at": Arm("pgd_at(attack={attack})"),
    "dial_ce_without_head": Arm("dial(attack={attack}, domain_weight=0.0)"),
    "dial_ce": Arm("dial(attack={attack}, domain_weight=1.0)"),
    "dial_ce_published_head": Arm("dial(attack={attack}, domain_weight=1.0, joint_domain_norm=False)"),
    "dial_kl_without_head": Arm("dial(attack={attack}, robust='kl', beta=6.0, domain_weight=0.0)"),
    "dial_kl": Arm("dial(attack={attack}, robust='kl', beta=6.0, domain_weight=1.0)"),
}

_README = "Levi et al., 2022, arXiv 2104.00322; table of the official repository, CIFAR-10, WRN-34-10"
_PAPER = "Levi et al., 2022, arXiv 2104.00322: features become domain invariant"


def _claim(statement: str, source: str, first: str, last: str, metric: str, direction: Any = "higher") -> Claim:
    return Claim(statement, source, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim("DIAL-CE has more clean accuracy than adversarial training", _README, "pgd_at", "dial_ce", "accuracy"),
    _claim(
        "The domain head raises robust accuracy (CE)", _README, "dial_ce_without_head", "dial_ce", "robust_accuracy"
    ),
    _claim(
        "The domain head raises robust accuracy (KL)", _README, "dial_kl_without_head", "dial_kl", "robust_accuracy"
    ),
    _claim(
        "A fresh probe tells adversarial features less well with the head",
        _PAPER,
        "dial_ce_without_head",
        "dial_ce",
        "probe_accuracy",
        "lower",
    ),
    _claim(
        "The published head, which sees one domain at a time, does less of it",
        "Reading of the official code: batch norm over one domain hides shifts of mean and scale",
        "dial_ce_published_head",
        "dial_ce",
        "probe_accuracy",
        "lower",
    ),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the arms and judge them; see the package for the rows."""
    s = SCALES[scale]
    return measure_arms(ARMS, s, seed, progress, domain_probe(s["eps"], seed))
