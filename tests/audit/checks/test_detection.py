"""Detectors on a trained network: figures from scikit-learn, what is fitted and what is scored, the attack that knows."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from withstand.audit.checks.detection import KNOWING, Detection
from withstand.detection.adversarial import Mahalanobis
from withstand.detection.ood import Bank
from withstand.errors import BadInput
from withstand.registry import parse

FAST = "attacks=(pgd(steps=10, keep='last', active=False), fgsm()), steps=15, weights=(0.0, 0.3)"


@pytest.fixture(scope="session")
def train(arrays):
    from tests.audit.conftest import _digits

    x, y = _digits()
    return arrays(x[:1297], y[:1297], "train")


_kept = {}


@pytest.fixture
def done(run, plain, digits, train, arrays):
    """One run for all tests that only look at it."""
    if not _kept:
        _kept["done"] = _done(run, plain, digits, train, arrays)
    return _kept["done"]


def _done(run, plain, digits, train, arrays):
    few = arrays(digits.x[:150], digits.y[:150], "few")
    check = f"detection(linf(0.1), {FAST}, detectors=('mahalanobis', 'kernel_density', 'odds(samples=4)'))"
    return run(check, plain, few, {"train": train}, shard=64)


def test_detectors_find_plain_attacks_and_fail_against_one_that_knows_them(done):
    auroc = {
        (d, a): done.metric("detection_auroc", detector=d, attack=a).value
        for d in ("mahalanobis", "kernel_density")
        for a in ("pgd", "fgsm", KNOWING)
    }
    assert min(auroc["mahalanobis", a] for a in ("pgd", "fgsm")) > 0.9
    assert min(auroc["kernel_density", a] for a in ("pgd", "fgsm")) > 0.75
    for detector in ("mahalanobis", "kernel_density"):
        assert auroc[detector, KNOWING] < auroc[detector, "pgd"] - 0.1
        missed = {a: done.metric("undetected_success", detector=detector, attack=a).value for a in ("pgd", KNOWING)}
        assert missed[KNOWING] > missed["pgd"] + 0.1
    assert {f.name for f in done.findings.flags} == {"detector fails against an attack that knows it"}
    assert {f.explanation.split(":")[0] for f in done.findings.flags} >= {"mahalanobis"}


def by_attack(done, detector):
    found: dict[str, dict[int, object]] = {}
    for row in done.rows:
        if row.condition["detector"] == detector:
            found.setdefault(row.condition["attack"], {})[row.id] = row
    return found


@pytest.mark.parametrize("attack", ["pgd", "fgsm", KNOWING])
@pytest.mark.parametrize("detector", ["mahalanobis", "odds"])
def test_figures_are_those_of_scikit_learn(done, detector, attack):
    rows = by_attack(done, detector)
    clean, attacked = rows["clean"], rows[attack]
    right = [i for i, r in clean.items() if r.label == r.prediction]
    won = [i for i in right if attacked[i].prediction != attacked[i].label]
    assert len(right) < 150  # some are wrong from the start, and count as clean ones only
    scores = np.array([r.value for r in clean.values()] + [attacked[i].value for i in won])
    kind = np.array([0] * 150 + [1] * len(won))
    assert done.metric("detection_auroc", detector=detector, attack=attack).value == pytest.approx(
        roc_auc_score(kind, scores)
    )
    false, true, _ = roc_curve(kind, scores, drop_intermediate=False)
    fpr95 = done.metric("detection_fpr95", detector=detector, attack=attack).value
    assert fpr95 == pytest.approx(false[np.argmax(true >= 0.95)])
    passed = [i for i in won if not attacked[i].outcome]
    rate = done.metric("detection_rate", detector=detector, attack=attack)
    missed = done.metric("undetected_success", detector=detector, attack=attack)
    assert (rate.value, rate.n) == (pytest.approx(1 - len(passed) / len(won)), len(won))
    assert (missed.value, missed.n) == (pytest.approx(len(passed) / len(right)), len(right))


def test_the_threshold_is_that_of_trusted_examples_that_are_neither_fitted_nor_scored(done, plain, digits, train):
    positions = np.arange(1297)
    fit, hold = (torch.as_tensor(positions[w]) for w in (positions % 4 != 3, positions % 4 == 3))
    bank = Bank(plain, [Mahalanobis()])
    fitted = bank.fit([train.x[fit]], train.y[fit])
    limit = float(bank.score(train.x[hold], fitted)["mahalanobis"].quantile(0.95))
    rows = by_attack(done, "mahalanobis")
    scores = bank.score(digits.x[:150], fitted)["mahalanobis"]
    np.testing.assert_allclose([rows["clean"][i].value for i in range(150)], scores, rtol=1e-5)
    flagged = (scores > limit).tolist()
    assert [not rows["clean"][i].outcome for i in range(150)] == flagged
    alarms = done.metric("false_alarms", detector="mahalanobis")
    assert alarms.value == pytest.approx(np.mean(flagged))
    assert 0 < alarms.value < 0.15
    for attack in ("pgd", KNOWING):
        assert all(r.outcome == (r.prediction == r.label or r.value > limit) for r in rows[attack].values())
    noise = done.metric("noise_alarms", detector="mahalanobis").value
    assert noise == pytest.approx(np.mean([r.value > limit for r in rows["noise"].values()]))


def test_the_best_point_of_the_attack_that_knows_is_never_worse_than_a_plain_one(done):
    for detector in ("mahalanobis", "kernel_density", "odds"):
        rows = by_attack(done, detector)
        for i, best in rows[KNOWING].items():
            wrong = [rows[a][i] for a in ("pgd", "fgsm") if rows[a][i].prediction != rows[a][i].label]
            assert best.prediction != best.label or not wrong
            assert all(best.value <= r.value for r in wrong)
        assert max(r.distance for a in ("pgd", KNOWING, "noise") for r in rows[a].values()) <= 0.1 + 1e-6
        assert max(r.distance for r in rows["clean"].values()) == 0
        assert min(r.distance for r in rows["noise"].values()) > 0.07


def test_rows_of_detectors_that_draw_noise_do_not_depend_on_shards(run, plain64, digits64, train, arrays):
    few = arrays(digits64.x[:20], digits64.y[:20], "few")
    given = {"train": arrays(train.x.double(), train.y, "train")}
    text = "detection(linf(0.1), attacks=(fgsm(),), detectors=('odds(samples=2)',), steps=2, weights=(0.0,))"
    parts = [run(text, plain64, few, given, shard=s, shuffle=s == 7).rows for s in (20, 7)]
    key = lambda r: (r.id, json.dumps(r.condition))  # noqa: E731
    for a, b in zip(*(sorted(p, key=key) for p in parts), strict=True):
        assert key(a) == key(b)
        assert a.value == pytest.approx(b.value, rel=1e-9)


def test_without_train_the_odd_positions_are_fitted_and_the_even_ones_scored(run, plain, digits):
    text = "detection(linf(0.1), attacks=(fgsm(),), detectors=('mahalanobis',), steps=1, weights=(0.0,))"
    found = run(text, plain, digits)
    assert sorted({r.id for r in found.rows}) == list(range(0, 500, 2))
    fit = torch.arange(1, 500, 2)[torch.arange(250) % 4 != 3]
    bank = Bank(plain, [Mahalanobis()])
    scores = bank.score(digits.x[::2], bank.fit([digits.x[fit]], digits.y[fit]))["mahalanobis"]
    clean = by_attack(found, "mahalanobis")["clean"]
    np.testing.assert_allclose([clean[i].value for i in range(0, 500, 2)], scores, rtol=1e-5)


def test_supervised_layers_are_learned_on_a_part_of_their_own(run, plain, digits, train, arrays, monkeypatch):
    learned, teach = [], Bank.teach
    monkeypatch.setattr(Bank, "teach", lambda self, clean, *rest: learned.append(clean[0]) or teach(self, clean, *rest))
    few = arrays(digits.x[:100], digits.y[:100], "few")
    text = "detection(linf(0.1), attacks=(pgd(steps=5),), detectors=('mahalanobis',), steps=1, weights=(0.0,)"
    found = {s: run(f"{text}, supervised={s})", plain, few, {"train": train}) for s in (False, True)}
    check = parse(f"{text}, supervised=True)", "check")
    artefact = check.prepare(plain, few, {"train": train}, found[True].ctx)
    weights = artefact["mahalanobis.weights"]
    assert torch.equal(learned[0], train.x[:1297][torch.arange(1297) % 4 == 2][: len(learned[0])])
    assert weights.std() > 0.1  # no equal shares any more
    fit = torch.arange(1297)[torch.arange(1297) % 4 < 2]
    whiten = Bank(plain, [Mahalanobis()]).fit([train.x[fit]], train.y[fit])["mahalanobis.blocks/model.6.means"]
    torch.testing.assert_close(artefact["mahalanobis.blocks/model.6.means"], whiten, rtol=1e-3, atol=1e-3)
    auroc = {s: found[s].metric("detection_auroc", detector="mahalanobis", attack="pgd").value for s in found}
    assert auroc[True] > 0.95
    with pytest.raises(BadInput, match="larger radius"):
        run(f"{text.replace('0.1', '1e-6')}, supervised=True)", plain, few, {"train": train})


def test_dropout_variance_joins_where_the_model_has_dropout(plain):
    from torch import nn

    from withstand.models import as_target

    names = ["kernel_density", "lid", "mahalanobis", "odds"]
    assert list(Detection().bank(plain, 0).detectors) == names
    dropping = as_target(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)))
    assert list(Detection().bank(dropping, 0).detectors) == [*names, "dropout_variance"]


def test_attacks_are_told_apart_by_their_objectives_and_numbers():
    assert list(Detection().chosen) == ["pgd", "pgd margin", "fgsm"]
    twice = parse("detection(linf(0.2), attacks=(pgd(), pgd(steps=3), pgd(objective=margin())))", "check").chosen
    assert list(twice) == ["pgd", "pgd #2", "pgd margin"]
    assert all(a.threat.eps == 0.2 for a in twice.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("linf()", "radius"),
        ("linf(0.1), weights=()", "weights"),
        ("linf(0.1), weights=(-1.0,)", "weights"),
        ("linf(0.1), steps=0", "steps"),
        ("linf(0.1), fitted=7", "fitted"),
        ("linf(0.1), detectors=('pgd',)", "pgd"),
        ("linf(0.1), detectors=(3,)", "detectors"),
    ],
)
def test_what_is_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        parse(f"detection({settings})", "check")


def test_what_is_scored_is_never_fitted(run, plain, digits, arrays):
    with pytest.raises(BadInput, match="other examples"):
        run("detection(linf(0.1))", plain, digits, {"train": arrays(digits.x.clone(), digits.y)})


def test_too_few_examples_are_refused(run, plain, digits, arrays):
    with pytest.raises(BadInput, match='Give "train"'):
        run("detection(linf(0.1))", plain, arrays(digits.x[:14], digits.y[:14]))
