"""mCE and its relatives."""

import pytest

from withstand.corruptions import corruption_names, mce, mean_error, relative_mce
from withstand.corruptions.scores import ALEXNET, ALEXNET_CLEAN
from withstand.errors import BadInput


def table(error: float) -> dict[str, list[float]]:
    return {name: [error] * 5 for name in corruption_names()}


ALEXNET_ERRORS = {name: [error] * 5 for name, error in ALEXNET.items()}


def test_alexnet_scores_100():
    assert mce(ALEXNET_ERRORS) == pytest.approx(100)
    assert relative_mce(ALEXNET_ERRORS, ALEXNET_CLEAN) == pytest.approx(100)
    assert mean_error(ALEXNET_ERRORS) == pytest.approx(0.788993, abs=1e-6)


def test_a_constant_accuracy_of_one_half_has_mce_64_67():
    assert mce(table(0.5)) == pytest.approx(64.67, abs=0.005)
    assert mean_error(table(0.5)) == pytest.approx(0.5)


def test_mce_is_the_mean_of_ratios_of_sums():
    errors, reference = table(0.4), table(0.8)
    errors["fog"], reference["fog"] = [0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.1, 0.1, 0.1, 0.2]
    assert mce(errors, reference) == pytest.approx(100 * (14 * 0.5 + 1.5 / 0.6) / 15)
    reference["fog"] = [0.3] * 5
    expected = 100 * (14 * (0.4 - 0.1) / (0.8 - 0.2) + (0.3 - 0.1) / (0.3 - 0.2)) / 15
    assert relative_mce(errors, 0.1, reference, 0.2) == pytest.approx(expected)


def test_extra_kinds_and_the_star_of_frost_change_nothing():
    errors = table(0.5)
    errors["frost*"] = errors.pop("frost")
    errors |= {name: [1.0] * 5 for name in corruption_names("extra")}
    assert mce(errors) == pytest.approx(64.67, abs=0.005)


def test_bad_tables_are_refused():
    partial = table(0.5)
    del partial["fog"], partial["snow"]
    with pytest.raises(BadInput, match="snow, fog"):
        mce(partial)
    with pytest.raises(BadInput, match="reference: got no snow, fog"):
        mce(table(0.5), partial)
    for wrong, message in (
        ({"fog": [0.5] * 4}, "fog.*4 values"),
        ({"fog": [0.5] * 4 + [50.0]}, "fog.*1 - accuracy"),
        ({"fog": [0.5] * 4 + [float("nan")]}, "fog"),
        ({"fogg": [0.5] * 5}, "Did you mean fog"),
    ):
        with pytest.raises(BadInput, match=message):
            mce(table(0.5) | wrong)
        with pytest.raises(BadInput, match=message):
            mean_error(table(0.5) | wrong)
    with pytest.raises(BadInput, match="resnet"):
        mce(table(0.5), "resnet")
    with pytest.raises(BadInput, match="no error at all under gaussian_noise"):
        mce(table(0.5), table(0.0))
    with pytest.raises(BadInput, match="reference_clean_error"):
        relative_mce(table(0.5), 0.1, table(0.6))
    with pytest.raises(BadInput, match="no loss under"):
        relative_mce(table(0.5), 0.1, table(0.6), 0.6)
    with pytest.raises(BadInput, match="clean_error"):
        relative_mce(table(0.5), 4.5)
