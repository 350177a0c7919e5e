"""What the retrieval check makes of its rows, and an audit of an engine from end to end."""

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks.fit import FittedAttack
from withstand.attacks.retrieval.stealing import Steal
from withstand.audit.check import Table
from withstand.audit.checks.retrieval import Retrieval
from withstand.audit.craft import craft
from withstand.audit.measure import attack_passes
from withstand.audit.plan import make_plan
from withstand.audit.presets import checks_of
from withstand.audit.store import as_table
from withstand.errors import BadInput, Unavailable
from withstand.models import ImageIndex, RetrievalTarget
from withstand.protocols import Context, Row, Space
from withstand.registry import parse
from withstand.threats import Linf

SPENT = [3, 8, 8, 40, None, None, None, 21, 2, None]


def findings(stolen=None, budget=50, silent=(0.25,) * 10):
    check = Retrieval(Linf(0.1), parse(f"qair(queries={budget})", "attack"))
    condition = {"attack": "qair", "threat": "linf", "eps": 0.1}
    rows = [Row("image", i, condition, q is None, q, distance=0.1, cost=q or budget) for i, q in enumerate(SPENT)]
    rows += [Row("image", i, {"of": "zero differences"}, None, share) for i, share in enumerate(silent)]
    rows += [] if stolen is None else [Row("model", 0, {"of": "substitute"}, None, stolen)] * 2
    return check.reduce(Table(as_table(rows)), {}, Context())


def metric(found, name):
    (one,) = [m for m in found.metrics if m.name == name]
    return one


def test_success_and_questions_are_summed_up():
    found = findings()
    won = [q for q in SPENT if q]
    assert metric(found, "lists_replaced").value == 0.6
    assert metric(found, "lists_replaced").low == pytest.approx(0.3127, abs=1e-3)
    assert metric(found, "mean_queries").value == pytest.approx(np.mean(won))
    assert metric(found, "median_queries").value == 8
    assert metric(found, "mean_queries_all").value == pytest.approx((sum(won) + 4 * 50) / 10)
    assert metric(found, "median_queries_all").value == 21
    assert metric(found, "zero_differences").value == 0.25
    assert [m.name for m in found.metrics if m.name == "stealing_queries"] == []


def test_the_curve_falls_where_lists_fall():
    (figure,) = findings().figures
    x, y = figure.data["x"], figure.data["series"][0]["y"]
    assert y == [sum(q is None or q > n for q in SPENT) / 10 for n in x]


def test_images_that_were_never_probed_have_no_share_of_silent_probes():
    found = metric(findings(silent=[0.5, 1.0] + [None] * 8), "zero_differences")
    assert (found.value, found.n) == (0.75, 2)
    assert not [m for m in findings(silent=[None] * 10).metrics if m.name == "zero_differences"]


def test_stealing_is_told_apart():
    found = findings(stolen=300)
    assert metric(found, "stealing_queries").value == 300
    assert metric(found, "mean_queries_all").value == metric(findings(), "mean_queries_all").value
    assert metric(found, "amortised_queries").value == pytest.approx((82 + 4 * 50 + 300) / 10)
    assert metric(found, "amortised_queries").low > 30
    assert not [m for m in findings().metrics if m.name == "amortised_queries"]
    assert "300 that the substitute was stolen with" in found.figures[0].caption


def test_bad_settings_are_refused():
    with pytest.raises(BadInput, match="attack on ranked lists"):
        Retrieval(attack="square")
    with pytest.raises(BadInput, match="one radius"):
        Retrieval(Linf())


# From end to end ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net(plain):
    return plain.model


@pytest.fixture(scope="module")
def engine(net, digits):
    return ImageIndex(net, digits.x[100:], k=5)


@pytest.fixture
def small(digits, arrays):
    return arrays(digits.x[:12], digits.y[:12], "digits")


CHECK = "retrieval(linf(0.3), attack=qair(queries=40))"


def test_an_engine_is_audited(engine, net, small, tmp_path):
    fitted = FittedAttack("model", net, ws.models.as_target(net).space, "stolen", None)  # type: ignore[arg-type]
    object.__setattr__(fitted, "fitted", type("F", (), {"history": [{"queries": 77}]})())
    check = parse(CHECK, "check")
    known = Retrieval(Linf(0.3), ws.attacks.QAIR(queries=40, substitute=fitted))
    card = ws.audit({"engine": engine}, small, checks=[check, known], out=tmp_path / "run")
    plain, guided = card.results
    assert [r.status for r in card.results] == ["done", "done"]
    rate = {r.check: next(m.value for m in r.metrics if m.name == "lists_replaced") for r in card.results}
    assert rate["retrieval-2"] >= rate["retrieval"]
    assert [m.value for m in guided.metrics if m.name == "stealing_queries"] == [77]
    assert not [m for m in plain.metrics if m.name == "stealing_queries"]
    assert "An outsider who sees only its ranked lists" in card.verdict["engine"]
    assert "Attack success rate" in (tmp_path / "run" / "report.html").read_text()


def test_a_substitute_may_be_given(engine, net, small, tmp_path):
    card = ws.audit(engine, small, checks=[CHECK], given={"substitute": net}, out=tmp_path / "run")
    alone = ws.audit(engine, small, checks=[CHECK], out=tmp_path / "alone")
    mean = [next(m.value for m in c.results[0].metrics if m.name == "mean_queries_all") for c in (card, alone)]
    assert mean[0] < mean[1]


@pytest.mark.parametrize("form", [lambda stolen: stolen, lambda stolen: stolen.target])
def test_a_stolen_substitute_that_is_given_tells_its_cost(engine, net, small, form):
    stolen = ws.fit_attack(Steal(victim=engine, queries=30, steps=2), net, small, epochs=1)
    card = ws.audit(engine, small, checks=[CHECK], given={"substitute": form(stolen)})
    assert [m.value for m in card.results[0].metrics if m.name == "stealing_queries"] == [30]


def test_checks_of_classifiers_do_not_apply(engine, small, net):
    plan = make_plan({"engine": engine, "net": net}, small, checks=["clean", CHECK])
    clean, lists = plan.checks["clean"], plan.checks["retrieval"]
    assert plan.obstacle(plan.models["engine"], clean) == (
        "not applicable", "the check is for classification, the model does retrieval",
    )  # fmt: skip
    assert plan.obstacle(plan.models["net"], lists)[0] == "not applicable"
    assert plan.obstacle(plan.models["engine"], lists) is None


@pytest.mark.parametrize("preset", ["quick", "standard", "full"])
def test_presets_of_engines_hold_what_applies(preset):
    found = checks_of(preset, space=Space((1, 8, 8)), access={"top_k"}, tasks={"retrieval"})
    assert list(found) == ["retrieval"]
    assert found["retrieval"].threat == Linf(0.15)
    both = checks_of(
        preset, space=Space((1, 8, 8)), access={"top_k", "decision", "gradients"}, tasks={"retrieval", "classification"}
    )
    assert {"clean", "retrieval"} <= {*both}


def test_data_that_does_not_fit_is_refused(engine, arrays, digits):
    colour = arrays(torch.zeros(4, 3, 8, 8), digits.y[:4])
    with pytest.raises(BadInput, match="channels: the model takes 1"):
        make_plan(engine, colour, checks=[CHECK])
    broken = RetrievalTarget(lambda z: [[1, 1]] * len(z), name="odd")
    with pytest.raises(Unavailable, match="twice"):
        make_plan(broken, digits, checks=[CHECK])


def test_an_audit_that_an_engine_broke_off_spends_nothing_twice(engine, small, tmp_path):
    check = "retrieval(linf(0.3), attack=qair(queries=30))"
    whole = ws.audit({"e": engine}, small, checks=[check], out=tmp_path / "whole").results[0]
    left = [9]

    def frail(z):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("gone")
        return engine(z)

    first = RetrievalTarget(frail, k=5, name="e", shape=(1, 8, 8), log=tmp_path / "log")
    with pytest.raises(Unavailable, match="gone"):
        ws.audit({"e": first}, small, checks=[check], out=tmp_path / "run")
    first._log._file.close()
    again = RetrievalTarget(engine, k=5, name="e", shape=(1, 8, 8), log=tmp_path / "log")
    card = ws.audit({"e": again}, small, checks=[check], out=tmp_path / "run").results[0]
    assert first.sent > 0
    assert first.sent + again.sent == len(again._log)
    assert [m.value for m in card.metrics] == [m.value for m in whole.metrics]


def test_no_attack_costs_more_than_its_estimate(engine, small):
    attack = parse("qair(linf(0.05), queries=30)", "attack")
    spent = attack.run(engine, small.x).forwards.max()
    assert 0 < spent <= attack_passes(attack, engine)


# Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["adv.npz", "adv"])
def test_images_are_written_with_what_the_engine_makes_of_them(engine, small, tmp_path, out):
    made = craft(engine, small, "qair(linf(0.3), queries=40)", tmp_path / out)
    written = ws.load_data(str(tmp_path / out), channels=1).batch(range(12)).x if out == "adv" else None
    written = torch.from_numpy(np.load(tmp_path / out)["x"]) if written is None else written
    now = engine(written)
    apart = [not set(a) & set(b) for a, b in zip(engine(small.x), now)]
    assert [image["success"] for image in made["images"]] == apart
    assert any(apart)
    assert made["success"]["value"] == sum(apart) / 12
    assert (written - small.x).abs().max() <= 0.3 + 1e-6


def test_an_attack_on_lists_needs_an_engine(net, small, tmp_path):
    with pytest.raises(BadInput, match="which needs top_k"):
        craft(nn.Sequential(net), small, "qair", tmp_path / "x.npz")
