"""Figures of detectors against counting by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from withstand.detection import acceptable, judge
from withstand.errors import BadInput

LABELS = np.array([0, 1, 2, 0, 1, -1, -1])
SAID = np.array([0, 1, 0, 0, 2, 1, 0])
SHIFTED = np.array([0, 0, 0, 1, 1, 0, 0], bool)


def test_what_is_to_be_accepted_by_each_notion():
    accept, used = acceptable(LABELS, SAID, SHIFTED, "conventional")
    assert used.tolist() == [1, 1, 1, 0, 0, 1, 1]
    assert accept[used].tolist() == [1, 1, 1, 0, 0]
    accept, used = acceptable(LABELS, SAID, SHIFTED, "full_spectrum")
    assert used.all()
    assert accept.tolist() == [1, 1, 1, 1, 1, 0, 0]
    accept, used = acceptable(LABELS, SAID, SHIFTED, "human_centric")
    assert used.all()
    assert accept.tolist() == [1, 1, 0, 1, 0, 0, 0]
    with pytest.raises(BadInput, match="human_centric"):
        acceptable(LABELS, SAID, SHIFTED, "human")  # type: ignore[arg-type]


def test_all_notions_agree_for_a_model_that_is_always_right():
    labels = np.array([0, 1, 2, -1])
    found = [
        acceptable(labels, np.array([0, 1, 2, 0]), np.zeros(4, bool), n) for n in ("conventional", "human_centric")
    ]
    assert np.array_equal(found[0][0], found[1][0])


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_counting_with_ties(seed):
    rng = np.random.default_rng(seed)
    scores, accept = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.6
    found = judge(scores, accept, threshold=3.0)
    assert found.auroc == pytest.approx(roc_auc_score(~accept, scores))
    assert found.aupr_reject == pytest.approx(average_precision_score(~accept, scores))
    assert found.aupr_accept == pytest.approx(average_precision_score(accept, -scores))
    assert found.error == np.mean((scores > 3) == accept)
    thresholds = [-np.inf, *np.unique(scores)]
    assert found.least_error == pytest.approx(min(np.mean((scores > t) == accept) for t in thresholds))
    kept = min(t for t in thresholds if np.mean(scores[accept] <= t) >= 0.95)
    assert found.fpr95 == pytest.approx(np.mean(scores[~accept] <= kept))
    assert (found.accept, found.reject) == (accept.sum(), (~accept).sum())


def test_aurc_is_the_mean_risk_over_coverage():
    accept = np.array([True, False, True, True])
    found = judge(np.array([0.1, 0.2, 0.3, 0.4]), accept)
    assert found.aurc == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 1 / 4]))
    assert np.isnan(found.error)


def test_a_perfect_score_and_thresholds_beyond_all():
    accept = np.array([True, True, False, True])
    found = judge((~accept).astype(float), accept, threshold=0.5)
    assert (found.auroc, found.fpr95, found.error, found.least_error) == (1, 0, 0, 0)
    assert judge((~accept).astype(float), accept, threshold=-1).error == pytest.approx(3 / 4)  # all rejected
    assert judge((~accept).astype(float), accept, threshold=2).error == pytest.approx(1 / 4)  # all accepted


def test_figures_do_not_change_under_rising_transforms():
    rng = np.random.default_rng(0)
    scores, accept = rng.random(50), rng.random(50) < 0.5
    one, two = judge(scores, accept, 0.5), judge(np.exp(3 * scores), accept, np.exp(1.5))
    assert one == two


def test_weights_stand_for_copies():
    rng = np.random.default_rng(1)
    scores, accept, times = rng.integers(0, 5, 30).astype(float), rng.random(30) < 0.5, rng.integers(1, 4, 30)
    weighted = judge(scores, accept, 2.0, times.astype(float))
    copied = judge(np.repeat(scores, times), np.repeat(accept, times), 2.0)
    for name in ("auroc", "aupr_accept", "aupr_reject", "fpr95", "error", "least_error"):
        assert getattr(weighted, name) == pytest.approx(getattr(copied, name))


@pytest.mark.parametrize(
    ("scores", "accept", "match"),
    [
        ([0.0, np.nan], [True, False], "none NaN"),
        ([0.0], [True, False], "a number for each"),
        ([0.0, 1.0], [True, True], "nothing to reject"),
        ([0.0, 1.0], [False, False], "nothing to accept"),
    ],
)
def test_what_cannot_be_judged(scores, accept, match):
    with pytest.raises(BadInput, match=match):
        judge(np.array(scores), np.array(accept))
