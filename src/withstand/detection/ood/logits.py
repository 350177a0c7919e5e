"""Detectors that look at the logits alone and need no fitting. Notation: z logits [N, K], p = softmax z."""

from collections.abc import Mapping

from torch import Tensor

from withstand.errors import bad
from withstand.registry import component


class _Unfitted:
    taps = ("logits",)
    needs_input = False

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        return {}


@component("detector", "msp", systems=("ood_human_centric",))
class MSP(_Unfitted):
    """Maximum softmax probability: 1 - max_c p_c.

    Summed over the other classes, so that it stays exact where the largest probability rounds to 1.

    Reference: Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks", 2017, arXiv 1610.02136.
    """

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        p = features["logits"].double().softmax(1)
        return p.scatter(1, p.argmax(1, keepdim=True), 0.0).sum(1)


@component("detector", "max_logit", systems=("ood_human_centric",))
class MaxLogit(_Unfitted):
    """Maximum logit: -max_c z_c.

    Reference: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", 2022, arXiv 1911.11132.
    """

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        return -features["logits"].amax(1).double()


@component("detector", "energy", systems=("ood_human_centric",))
class Energy(_Unfitted):
    """Free energy: -T log sum_c exp(z_c / T).

    temperature: T.

    Reference: Liu, Wang, Owens, Li, "Energy-based Out-of-distribution Detection", 2020, arXiv 2010.03759.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise bad("temperature", self.temperature, "a number > 0")

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        return -self.temperature * (features["logits"].double() / self.temperature).logsumexp(1)
