"""Detectors that look at the logits alone. Notation: z logits [N, K], p = softmax z."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
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


@component("detector", "gen", systems=("ood_human_centric",))
class GEN(_Unfitted):
    """Generalised entropy of the M largest probabilities: sum_c (p_c (1 - p_c))^gamma.

    gamma: in (0, 1); the smaller, the more small deviations from certainty count. largest: M.

    Reference: Liu, Lochman, Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023.
    """

    gamma: float = 0.1
    largest: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise bad("gamma", self.gamma, "a number in (0, 1)")
        if self.largest < 1:
            raise bad("largest", self.largest, "a whole number >= 1")

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        p = features["logits"].double().softmax(1)
        p = p.topk(min(self.largest, p.shape[1]), dim=1).values
        return (p * (1 - p)).clamp_min(0).pow(self.gamma).sum(1)


@component("detector", "temperature_scaling", systems=("ood_human_centric",))
class TemperatureScaling:
    """1 - max_c softmax(z / T)_c with the temperature T of least cross-entropy on the trusted examples and their labels.

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599.
    """

    taps = ("logits",)
    needs_input = False

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """T, within 1/100 and 100. Raises: BadInput without labels."""
        z = features["logits"].double()
        y = labels_of(y, len(z)).to(z.device)
        log_t = torch.tensor(1.5, dtype=torch.float64).log().to(z.device).requires_grad_()
        search = torch.optim.LBFGS([log_t], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            value = F.cross_entropy(z / log_t.exp(), y)
            value.backward()
            return value

        with torch.enable_grad():
            search.step(loss)  # type: ignore[arg-type]
        return {"temperature": log_t.detach().exp().clamp(0.01, 100)}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        z = features["logits"].double()
        return MSP().score({"logits": z / fitted["temperature"].to(z)}, {})


@component("detector", "kl_matching", systems=("ood_human_centric",))
class KLMatching:
    """Divergence from the nearest class profile: min_c KL(p || q_c), q_c the mean p of trusted examples predicted as c.

    Classes that no trusted example is predicted as have no profile. Needs no labels.

    Reference: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", 2022, arXiv 1911.11132.
    """

    taps = ("logits",)
    needs_input = False

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        p = features["logits"].double().softmax(1)
        said = p.argmax(1)
        return {"profiles": torch.stack([p[said == c].mean(0) for c in said.unique()])}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        log_p = features["logits"].double().log_softmax(1)
        log_q = fitted["profiles"].to(log_p).clamp_min(1e-300).log()
        p = log_p.exp()
        return ((p * log_p).sum(1, keepdim=True) - p @ log_q.T).amin(1).clamp_min(0)


def labels_of(y: Tensor | None, n: int) -> Tensor:
    """The labels [n] of trusted examples. Raises: BadInput where there are none."""
    if y is None or y.dim() != 1 or len(y) != n:
        raise bad("labels", None if y is None else tuple(y.shape), f"the class of each of the {n} trusted examples")
    return y
