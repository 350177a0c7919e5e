"""The check of classifiers that vote."""

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.audit.check import Table
from withstand.audit.checks.knn import KNNCheck
from withstand.audit.presets import checks_of
from withstand.audit.store import as_table
from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.models import knn_classifier
from withstand.protocols import Context, Row
from withstand.threats import Linf

CHECK = KNNCheck(Linf(0.2), steps=8, epochs=10)


@pytest.fixture(scope="module")
def votes(plain, digits):
    return knn_classifier(plain, (digits.x[100:], digits.y[100:]), ["7"])


def test_the_attacks_inside_break_what_noise_does_not(run, votes, arrays, digits):
    data = arrays(digits.x[:100], digits.y[:100], "digits")
    found = run(CHECK, votes, data)
    share = {m.condition["attack"]: m.value for m in found.findings.metrics}
    assert share["clean"] > 0.9
    assert share["origin"] < 0.6
    assert share["advknn"] < 0.6
    assert share["ask"] < 0.6
    assert share["worst"] <= min(share["origin"], share["advknn"], share["ask"])
    noise = torch.randint(0, 2, data.x.shape, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    assert (votes.model.predict((data.x + noise).clamp(0, 1)) == data.y).float().mean() > share["worst"] + 0.3


def test_worst_is_right_under_every_attack(run, votes, arrays, digits):
    rows = run(CHECK, votes, arrays(digits.x[:60], digits.y[:60], "digits"), shard=25).table
    every = [rows.where(attack=name).outcome for name in ("clean", "origin", "advknn", "ask")]
    assert np.array_equal(rows.where(attack="worst").outcome, np.logical_and.reduce(every))


def test_shares_and_their_conditions():
    outcomes = {"clean": 9, "origin": 5, "advknn": 4, "advknn_ce": 4, "ask": 6, "worst": 3}
    rows = [Row("image", i, {"attack": a}, i < n, None, 0, 0, 0.0, 1) for a, n in outcomes.items() for i in range(10)]
    found = CHECK.reduce(Table(as_table(rows)), {}, Context())
    assert {m.condition["attack"]: m.value for m in found.metrics} == {a: n / 10 for a, n in outcomes.items()}
    assert found.metrics[0].condition == {"attack": "clean"}
    assert found.metrics[-1].condition == {"attack": "worst", "threat": "linf", "eps": 0.2}


def test_presets_ask_it_of_kNN_classifiers_and_spare_them_gradients(votes):
    for preset in ("quick", "standard", "full"):
        chosen = checks_of(preset, access=votes.access)
        assert "knn" in chosen
        assert "blackbox" in chosen
        assert not {"robust", "curve"} & set(chosen)
        assert "knn" not in checks_of(preset, access={"gradients", "features", "scores", "decision"})


def test_an_audit_says_what_it_has_and_what_does_not_apply(votes, plain, digits, tmp_path):
    data = from_arrays(digits.x[:30], digits.y[:30], classes=10)
    checks = ["knn(linf(0.2), steps=3, epochs=2)", "robust(linf(0.2), attack=pgd(steps=2))"]
    card = ws.audit({"votes": votes, "net": plain}, data, checks=checks, out=tmp_path / "run")
    status = {(r.model, r.check): (r.status, r.reason) for r in card.results}
    assert status["votes", "knn"][0] == status["net", "robust"][0] == "done"
    assert status["net", "knn"] == ("not applicable", "needs access to neighbours")
    assert status["votes", "robust"] == ("not applicable", "needs access to gradients")


def test_bad_settings_are_refused():
    for make, said in [
        (lambda: KNNCheck(epochs=0), "epochs"),
        (lambda: KNNCheck(steps=0), "steps"),
        (lambda: KNNCheck(ws.L2(None)), "one radius"),
    ]:
        with pytest.raises(BadInput, match=said):
            make()
