"""FAAT beside the same training without its domain term, on scikit-learn's digits.

No number of the paper could be confirmed. The discriminator is the small one on pooled features, whose term needs a larger
weight than the published 0.001 to matter. A fresh linear probe within each class shows what the term is for.
"""

from collections.abc import Callable
from typing import Any

from withstand.protocols import Claim
from withstand.reproductions.arms import Arm, cifar_scale, digits_scales, measure_arms
from withstand.reproductions.probes import domain_probe

SYSTEM = "faat"
SCALES = digits_scales() | cifar_scale()
_D = "attack={attack}, discriminator='mlp', optimizer=adam(1e-3, betas=(0.9, 0.99))"
ARMS = {
    "faat_without_term": Arm(f"faat({_D}, weights=(0.0, 1.0, 0.0, 0.0))"),
    "faat": Arm(f"faat({_D}, weights=(0.0, 1.0, 0.1, 0.0))"),
    "faat_adversarial": Arm(f"faat({_D}, weights=(0.0, 1.0, 0.1, 0.0), move='adversarial')"),
    "faat_published_targets": Arm(f"faat({_D}, weights=(0.0, 1.0, 0.1, 0.0), variant='published')"),
    "dial_ce": Arm("dial(attack={attack}, domain_weight=1.0)"),
}

_PAPER = "Yin et al., 2021, arXiv 2112.00323, abstract"


def _claim(statement: str, first: str, last: str, metric: str, direction: Any = "higher") -> Claim:
    return Claim(statement, _PAPER, (first, last), metric, direction, SCALES)


CLAIMS = [
    _claim("The domain term raises robust accuracy", "faat_without_term", "faat", "robust_accuracy"),
    _claim(
        "It does so when adversarial features are moved", "faat_without_term", "faat_adversarial", "robust_accuracy"
    ),
    _claim("It costs no clean accuracy that would show: accuracy rises", "faat_without_term", "faat", "accuracy"),
    _claim(
        "Within a class, a fresh probe tells the domains less well",
        "faat_without_term",
        "faat",
        "probe_accuracy",
        "lower",
    ),
    _claim(
        "The targets without the slip of the released code serve better",
        "faat_published_targets",
        "faat",
        "robust_accuracy",
    ),
]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train the arms and judge them; see the package for the rows."""
    s = SCALES[scale]
    return measure_arms(ARMS, s, seed, progress, domain_probe(s["eps"], seed, by_class=True))
