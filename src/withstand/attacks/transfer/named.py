"""The transfer attacks by their names: projected gradient ascent with the papers' views, shapings and settings.

All end at the last of ten steps of a tenth of the radius, begin at the clean point and let no example leave early: what
counts is whether the point fools another model.
"""

from dataclasses import field
from typing import Any, ClassVar, Literal

from withstand.attacks.pgd import PGD
from withstand.attacks.shapings import Momentum
from withstand.attacks.transfer.blocks import BlockShuffle
from withstand.attacks.transfer.inputs import Admixture, Diversity, Scale, Spectrum
from withstand.attacks.transfer.neighbours import Nesterov, PenalisedNorm, Variance
from withstand.attacks.transfer.translation import Translation
from withstand.attacks.transfer.worst import WorstNeighbour
from withstand.registry import component
from withstand.threats import Linf, ThreatField


@component("attack", "mi", systems=("transfer_baselines",))
class MI(PGD):
    """Momentum iterative method (MI-FGSM): PGD with momentum, ending at its last step.

    step: None takes 1 / steps. Further fields as for `pgd`; every transfer attack of this family is this one with other
    defaults for `views` and `shapings`, and can be composed on: `mi(views=(scale(), diversity()))`.

    Reference: Dong et al., "Boosting Adversarial Attacks with Momentum", 2018, arXiv 1710.06081.
    """

    threat: ThreatField = Linf(16 / 255)
    random_start: Any = False
    shapings: tuple[Any, ...] = (Momentum(),)
    keep: Literal["best", "last"] = field(default="last", kw_only=True)
    active: bool = field(default=False, kw_only=True)

    reach: ClassVar[float] = 1.0
    prepares: ClassVar[bool] = True  # type: ignore[override]


@component("attack", "ni", systems=("transfer_baselines",))
class NI(MI):
    """Nesterov iterative method (NI-FGSM): momentum with a look-ahead along it.

    Reference: Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", 2020, arXiv
    1908.06281.
    """

    views: tuple[Any, ...] = (Nesterov(),)


@component("attack", "di", systems=("transfer_baselines",))
class DI(MI):
    """Diverse inputs (DIM): momentum over randomly resized and padded inputs.

    Reference: Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", 2019, arXiv 1803.06978.
    """

    views: tuple[Any, ...] = (Diversity(),)


@component("attack", "ti", systems=("transfer_baselines",))
class TI(MI):
    """Translation invariance (TIM): momentum over smoothed gradients.

    Reference: Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", 2019,
    arXiv 1904.02884.
    """

    shapings: tuple[Any, ...] = (Translation(), Momentum())


@component("attack", "si", systems=("transfer_baselines",))
class SI(MI):
    """Scale invariance (SIM): momentum over the mean of scaled copies.

    Reference: Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", 2020, arXiv
    1908.06281.
    """

    views: tuple[Any, ...] = (Scale(),)


@component("attack", "vmi", systems=("transfer_baselines",))
class VMI(MI):
    """Variance-tuned momentum (VMI-FGSM).

    Reference: Wang, He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", 2021, arXiv
    2103.15571.
    """

    views: tuple[Any, ...] = (Variance(),)


@component("attack", "vni", systems=("transfer_baselines",))
class VNI(MI):
    """Variance-tuned momentum with Nesterov look-ahead (VNI-FGSM).

    Reference: Wang, He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", 2021, arXiv
    2103.15571.
    """

    views: tuple[Any, ...] = (Nesterov(), Variance())


@component("attack", "admix", systems=("transfer_baselines",))
class Admix(MI):
    """Admix with momentum: copies mixed with three other images, each at five scales.

    Reference: Wang et al., "Admix: Enhancing the Transferability of Adversarial Attacks", 2021, arXiv 2102.00436.
    """

    views: tuple[Any, ...] = (Admixture(), Scale())


@component("attack", "ssa", systems=("transfer_baselines",))
class SSA(MI):
    """Spectrum simulation attack with momentum.

    Reference: Long et al., "Frequency Domain Model Augmentation for Adversarial Attack", 2022, arXiv 2207.05382.
    """

    views: tuple[Any, ...] = (Spectrum(),)


@component("attack", "pgn", systems=("transfer_baselines",))
class PGN(MI):
    """Penalised gradient norm with momentum.

    Reference: Ge et al., "Boosting Adversarial Transferability by Achieving Flat Local Maxima", 2023, arXiv 2306.05225.
    """

    views: tuple[Any, ...] = (PenalisedNorm(),)


@component("attack", "si_ni_ti_dim", systems=("transfer_baselines",))
class SINITIDIM(MI):
    """The stack SI-NI-TI-DIM: look-ahead, scaled copies, each diversified, gradients smoothed, momentum.

    Reference: Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", 2020, arXiv
    1908.06281 (section 4.4).
    """

    views: tuple[Any, ...] = (Nesterov(), Scale(), Diversity())
    shapings: tuple[Any, ...] = (Translation(), Momentum())


@component("attack", "vni_si_ti_dim", systems=("transfer_baselines",))
class VNISITIDIM(MI):
    """The stack VNI-CT-FGSM: variance tuning over SI-NI-TI-DIM.

    Reference: Wang, He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", 2021, arXiv
    2103.15571 (section 4.3).
    """

    views: tuple[Any, ...] = (Nesterov(), Variance(), Scale(), Diversity())
    shapings: tuple[Any, ...] = (Translation(), Momentum())


@component("attack", "bsr", systems=("transfer_baselines",))
class BSR(MI):
    """Block shuffle and rotation with momentum.

    Reference: Wang, He, Wang, Wang, "Boosting Adversarial Transferability by Block Shuffle and Rotation", 2024, arXiv
    2308.10299.
    """

    views: tuple[Any, ...] = (BlockShuffle(),)


@component("attack", "rap", systems=("transfer_baselines",))
class RAP(MI):
    """Reverse adversarial perturbation with momentum: 400 steps, of which the last 300 look at the worst neighbour.

    Reference: Qin, Fan, Liu, Shen, Zhang, Wang, Wu, "Boosting the Transferability of Adversarial Attacks with Reverse
    Adversarial Perturbation", 2022, arXiv 2210.05968.
    """

    steps: int = 400
    step: float | None = 1 / 8
    views: tuple[Any, ...] = (WorstNeighbour(after=100),)
