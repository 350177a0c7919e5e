"""Scores of a table of errors under corruption: mCE, relative mCE and the plain mean.

A table maps each of the 15 common kinds to its error rates at severities 1..5 (top-1 error = 1 - accuracy, in [0, 1]).
Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
2019, arXiv 1903.12261.
"""

from collections.abc import Mapping, Sequence

from withstand.corruptions.tables import COMMON, EXTRA
from withstand.errors import bad, unknown

Errors = Mapping[str, Sequence[float]]

# AlexNet's errors on ImageNet-C, mean over the five severities, as in the evaluation code of AugMix (Hendrycks et al.,
# 2020, arXiv 1912.02781).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# AlexNet's clean error as the paper's table gives it; the released model's exact value may differ in the last digit.
ALEXNET_CLEAN = 0.4348


def mce(errors: Errors, reference: str | Errors = "alexnet") -> float:
    """Mean corruption error in per cent: 100 times the mean over the 15 kinds of sum_s E[s, c] / sum_s A[s, c].

    errors: kind -> five error rates; the four extra kinds may be present and are left out, `frost*` counts as frost.
    reference: "alexnet" (100 = as good as AlexNet on ImageNet-C; say nothing with it about other data sets) or a
    complete table of another model on the same images.

    Raises: BadInput for a missing or unknown kind, a list that is not five long, an error outside [0, 1].
    """
    means, base = _complete(errors, "errors"), _reference(reference)
    return 100 * sum(means[c] / base[c] for c in COMMON) / len(COMMON)


def relative_mce(
    errors: Errors,
    clean_error: float,
    reference: str | Errors = "alexnet",
    reference_clean_error: float | None = None,
) -> float:
    """Relative mCE in per cent: as `mce`, with each model's clean error taken off first.

    reference_clean_error: of the reference; known for "alexnet" (0.4348).

    Raises: BadInput as `mce`, and where the reference's clean error is not given or a reference kind does no harm.
    """
    if reference_clean_error is None:
        if reference != "alexnet":
            raise bad("reference_clean_error", None, "the clean error of the reference model")
        reference_clean_error = ALEXNET_CLEAN
    for name, value in (("clean_error", clean_error), ("reference_clean_error", reference_clean_error)):
        _check_rate(name, value)
    means, base = _complete(errors, "errors"), _reference(reference)
    if harmless := [c for c in COMMON if base[c] <= reference_clean_error]:
        raise bad("reference", f"no loss under {', '.join(harmless)}", "errors above the reference's clean error")
    ratios = [(means[c] - clean_error) / (base[c] - reference_clean_error) for c in COMMON]
    return 100 * sum(ratios) / len(COMMON)


def mean_error(errors: Errors) -> float:
    """The plain mean error over 15 kinds and 5 severities, in [0, 1]: what CIFAR papers call mCE.

    Raises: BadInput as `mce`.
    """
    return sum(_complete(errors, "errors").values()) / len(COMMON)


def _reference(reference: str | Errors) -> Mapping[str, float]:
    if not isinstance(reference, str):
        base = _complete(reference, "reference")
        if zero := [c for c in COMMON if base[c] == 0]:
            raise bad("reference", f"no error at all under {', '.join(zero)}", "errors above 0")
        return base
    if reference != "alexnet":
        raise unknown("reference", reference, ["alexnet"])
    return ALEXNET


def _complete(errors: Errors, argument: str) -> dict[str, float]:
    """The mean error of each common kind."""
    table = {name.removesuffix("*"): rates for name, rates in errors.items()}
    for name in table.keys() - {*COMMON, *EXTRA}:
        raise unknown(f"{argument}: corruption", name, COMMON + EXTRA)
    if missing := [c for c in COMMON if c not in table]:
        raise bad(argument, f"no {', '.join(missing)}", "all 15 common corruptions", "A partial mean is not an mCE.")
    for name, rates in table.items():
        if len(rates) != 5:
            raise bad(f"{argument}[{name!r}]", f"{len(rates)} values", "one error for each of the severities 1..5")
        for rate in rates:
            _check_rate(f"{argument}[{name!r}]", rate)
    return {c: sum(table[c]) / 5 for c in COMMON}


def _check_rate(argument: str, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise bad(argument, rate, "an error rate in [0, 1]", "Give 1 - accuracy, not per cent.")
