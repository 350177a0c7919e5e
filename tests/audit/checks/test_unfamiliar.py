"""Scores from the logits, figures from scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from withstand.audit.checks.unfamiliar import fit_input
from withstand.errors import BadInput


@pytest.fixture
def done(run, plain64, digits64, noise, arrays):
    few = arrays(digits64.x[:80], digits64.y[:80], "few")
    return run(
        "unfamiliar(k=3)", plain64, few, {"ood": arrays(noise.x.double(), noise.y, "noise", noise.classes)}, shard=32
    )


def scores(done, detector):
    rows = [r for r in done.rows if r.condition["detector"] == detector]
    return np.array([r.value for r in rows]), np.array([r.unit == "unfamiliar" for r in rows])


def test_scores_are_those_of_the_formulas(done, plain64, digits64, noise):
    x = torch.cat([digits64.x[:80:2], fit_input(noise.x.double(), (1, 8, 8))])  # every second example is scored
    with torch.no_grad():
        z = plain64(x)
    expected = {"msp": -z.softmax(1).amax(1), "max_logit": -z.amax(1), "energy": -z.logsumexp(1)}
    for name, values in expected.items():
        found, unfamiliar = scores(done, name)
        assert unfamiliar.tolist() == [False] * 40 + [True] * 60
        np.testing.assert_allclose(np.diff(found), np.diff(values.numpy()), atol=1e-9)  # a constant may be added


@pytest.mark.parametrize("detector", ["msp", "energy", "knn"])
def test_figures_are_those_of_scikit_learn(done, detector):
    found, unfamiliar = scores(done, detector)
    assert done.metric("auroc", detector=detector).value == pytest.approx(roc_auc_score(unfamiliar, found))
    of = {p: done.metric("aupr", detector=detector, positive=p).value for p in ("unfamiliar", "familiar")}
    assert of["unfamiliar"] == pytest.approx(average_precision_score(unfamiliar, found))
    assert of["familiar"] == pytest.approx(average_precision_score(~unfamiliar, -found))
    false, true, _ = roc_curve(~unfamiliar, -found, drop_intermediate=False)
    assert done.metric("fpr95", detector=detector).value == pytest.approx(false[np.argmax(true >= 0.95)])


@pytest.mark.parametrize("detector", ["msp", "energy", "knn"])
def test_wrong_answers_count_with_the_unfamiliar_by_the_human_centric_notion(done, detector, plain64, digits64):
    found = scores(done, detector)[0]
    with torch.no_grad():
        wrong = (plain64(digits64.x[:80:2]).argmax(1) != digits64.y[:80:2]).numpy()
    reject = np.r_[wrong, np.ones(60, bool)]
    assert wrong.any()
    assert done.metric("human_auroc", detector=detector).value == pytest.approx(roc_auc_score(reject, found))
    false, true, _ = roc_curve(~reject, -found, drop_intermediate=False)
    assert done.metric("human_fpr95", detector=detector).value == pytest.approx(false[np.argmax(true >= 0.95)])


def test_neighbours_come_from_examples_that_are_not_scored(done, plain64, digits64):
    ids = [r.id for r in done.rows if r.unit == "image" and r.condition["detector"] == "knn"]
    assert ids == list(range(0, 80, 2))


def test_images_are_made_to_fit():
    colour = torch.rand(2, 3, 4, 4)
    luma = fit_input(colour, (1, 4, 4))
    np.testing.assert_allclose(
        luma[:, 0], 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2], rtol=1e-5
    )
    assert torch.equal(fit_input(luma, (3, 4, 4)), luma.expand(-1, 3, -1, -1))
    assert fit_input(torch.ones(1, 1, 9, 5), (1, 8, 8)).shape == (1, 1, 8, 8)
    with pytest.raises(BadInput, match="1 or 3 channels"):
        fit_input(torch.zeros(1, 2, 8, 8), (1, 8, 8))
