"""What the checks of searches say, against searches done by hand, and audits of such models from end to end."""

import copy
import json

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.audit.checks.embedding import EmbeddingCheck, HashingCheck
from withstand.audit.plan import make_plan
from withstand.audit.presets import OTHERS, checks_of
from withstand.audit.shelf import Shelf
from withstand.audit.shelf import small as small_pictures
from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.models import TorchTarget
from withstand.protocols import Context
from withstand.registry import entries, parse
from withstand.representation.metrics import code_scores, retrieval_metrics, retrieval_scores

PGD = "pgd(steps=4, objective=push_away())"
QUICK = f"embedding(linf(0.2), attack={PGD}, ks=(1, 3))"
CODES = f"hashing(linf(0.2), attack={PGD}, ks=(1, 5), radius=1)"


@pytest.fixture(scope="module")
def embeds(plain):
    return TorchTarget(nn.Sequential(*list(copy.deepcopy(plain.model))[:7]), "embeds", plain.space, "embedding")


@pytest.fixture(scope="module")
def hashes(plain):
    module = nn.Sequential(copy.deepcopy(plain.model), nn.Tanh())
    return TorchTarget(module, "hashes", plain.space, "hashing")


@pytest.fixture
def small(digits, arrays):
    return arrays(digits.x[:60], digits.y[:60], "digits")


def vectors(target, x):
    with torch.no_grad():
        return nn.functional.normalize(target(x), dim=1)


def test_clean_measures_are_those_of_a_search_among_the_others(run, embeds, small):
    done = run(QUICK, embeds, small)
    want = retrieval_metrics(vectors(embeds, small.x), small.y, ks=(1, 3), lone="skip", nmi=True)
    for name in ("recall_at_1", "recall_at_3", "map_at_r", "r_precision"):
        clean = [m for m in done.findings.metrics if m.name == name and "attack" not in m.condition]
        assert [m.value for m in clean] == pytest.approx([want[name]])
        assert clean[0].low <= clean[0].value <= clean[0].high
    counts = [(small.y == label).sum().item() - 1 for label in small.y.tolist()]
    assert done.metric("chance").value == pytest.approx(sum(counts) / 60 / 59)
    for name in ("pi_intra", "pi_inter", "pi_ratio", "rho", "nmi"):
        assert done.metric(name).value == pytest.approx(want[name], abs=1e-9)


def test_the_gallery_stays_clean_and_the_queries_are_attacked(run, embeds, digits, arrays):
    queries, items = arrays(digits.x[:20], digits.y[:20], "q"), arrays(digits.x[20:90], digits.y[20:90], "g")
    done = run(QUICK, embeds, queries, {"gallery": items})
    attack = parse(PGD, "attack")
    attacked = ws.parse("pgd(linf(0.2), steps=4, objective=push_away())", "attack")
    assert attack.objective == attacked.objective
    x_adv = attacked(embeds, queries.x, queries.y, seed=0, ids=queries.ids)
    for x, condition in ((queries.x, {}), (x_adv, {"attack": "pgd"})):
        scores = retrieval_scores(
            vectors(embeds, x), queries.y, vectors(embeds, items.x), items.y, ks=(1, 3), lone="skip"
        )
        for name, values in scores.items():
            if name.startswith("map_at_") and name != "map_at_r":
                continue
            found = [
                m
                for m in done.findings.metrics
                if m.name == name and m.condition.get("attack") == condition.get("attack")
            ]
            assert [m.value for m in found] == pytest.approx([values.nanmean().item()], abs=1e-9), name
    shift = (1 - (vectors(embeds, queries.x) * vectors(embeds, x_adv)).sum(1)).mean().item()
    assert done.metric("shift").value == pytest.approx(shift, abs=1e-6)
    assert shift > 0.01


def test_the_same_data_as_gallery_is_leaving_one_out(run, embeds, small):
    assert run(QUICK, embeds, small, {"gallery": copy.deepcopy(small)}).rows == run(QUICK, embeds, small).rows


def test_codes_are_looked_up_by_distance_and_radius(run, hashes, small):
    done = run(CODES, hashes, small)
    with torch.no_grad():
        codes = torch.where(hashes(small.x) >= 0, 1, -1)
    want = code_scores(codes, small.y, ks=(1, 5), radius=1, lone="skip")
    for name in ("map", "recall_at_1", "map_at_5", "precision_at_radius_1", "recall_at_radius_1"):
        (clean,) = [m for m in done.findings.metrics if m.name == name and "attack" not in m.condition]
        assert clean.value == pytest.approx(want[name].nanmean().item()), name
    assert done.metric("distinct_codes").value == len(codes.unique(dim=0))
    assert {f.kind for f in done.findings.figures} == {"bars", "neighbours"}
    nearest = done.findings.figures[-1].data["items"][0]["before"]
    assert [n["distance"] for n in nearest] == sorted(n["distance"] for n in nearest)


def test_an_attack_that_asks_for_a_database_gets_codes_and_labels(run, hashes, small, monkeypatch):
    seen = {}

    class Asking:
        component_name, access, database, threat = "asking", "gradients", None, ws.Linf(0.2)

        def run(self, target, x, y, **context):
            from withstand.attacks.engine import AttackResult

            seen["database"] = self.database
            none = torch.zeros(len(x))
            return AttackResult(x, none.bool(), none, none, none.long(), none.long(), none.long())

    monkeypatch.setattr(HashingCheck, "chosen", property(lambda self: Asking()))

    def swap(value, **new):
        made = copy.copy(value)
        made.__dict__.update(new)
        return made

    monkeypatch.setattr("withstand.audit.checks.embedding.replace", swap)
    done = run(HashingCheck(ws.Linf(0.2)), hashes, small)
    with torch.no_grad():
        codes = torch.where(hashes(small.x) >= 0, 1.0, -1.0)
    assert torch.equal(seen["database"][0], codes)
    assert torch.equal(seen["database"][1], small.y)
    (flag,) = [f for f in done.findings.flags if f.name == "attack without effect"]
    assert flag.level == "fail"


def test_lonely_queries_have_no_rows(run, embeds, digits, arrays):
    y = torch.arange(30) % 3
    y[4] = 9
    done = run(QUICK, embeds, arrays(digits.x[:30], y, "lonely"))
    assert {r.id for r in done.rows if r.unit == "image"} == set(range(30)) - {4}


class Same(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 4) + 0 * x.flatten(1)[:, :4]


@pytest.mark.parametrize(("task", "check"), [("embedding", QUICK), ("hashing", CODES)])
def test_a_collapsed_model_is_flagged(run, small, task, check):
    done = run(check, TorchTarget(Same(), "same", small.space, task), small)
    levels = {f.name: f.level for f in done.findings.flags}
    assert levels == {"collapsed": "fail", "attack without effect": "fail"}


def test_classes_are_drawn_whole_where_there_are_many(run, embeds, digits, arrays):
    y = torch.arange(60) // 2
    done = run(QUICK, embeds, arrays(digits.x[:60], y, "many", tuple(map(str, range(30)))))
    assert {m.interval for m in done.findings.metrics if m.name == "map_at_r"} == {"cluster bootstrap"}


def test_pictures_are_kept_small_and_not_of_large_galleries(run, embeds, small, monkeypatch):
    monkeypatch.setattr("withstand.audit.shelf._PICTURES", 100)
    figure = run(QUICK, embeds, small).findings.figures[-1]
    assert all("image" not in near for item in figure.data["items"] for near in item["before"])
    held = parse(QUICK, "check").prepare(embeds, small, {}, Context())
    assert len(Shelf(held).pictures) == 0
    assert small_pictures(torch.rand(2, 3, 100, 50), 24).shape == (2, 3, 24, 12)


def test_a_gallery_of_other_classes_is_refused(run, embeds, small, noise):
    with pytest.raises(BadInput, match="Labels must mean the same"):
        run(QUICK, embeds, small, {"gallery": noise})


@pytest.mark.parametrize(
    ("text", "said"),
    [("embedding(ks=(0,))", "ks"), ("hashing(radius=-1)", "radius"), ("embedding(linf())", "one radius")],
)
def test_settings_that_mean_nothing_are_refused(text, said):
    with pytest.raises(BadInput, match=said):
        parse(text, "check")


def test_presets_for_searches_hold_only_searches():
    for preset in OTHERS["embedding"]:
        found = checks_of(preset, tasks={"embedding"})
        assert {type(c) for c in found.values()} == {EmbeddingCheck}
    if "cga" in {e.name for e in entries("attack")}:
        for preset in OTHERS["hashing"]:
            found = checks_of(preset, tasks={"hashing"})
            assert {type(c) for c in found.values()} == {HashingCheck}


def test_an_audit_says_what_is_found_and_what_does_not_apply(embeds, plain, small, tmp_path):
    card = ws.audit({"embeds": embeds, "classifies": plain}, small, checks=["clean", QUICK], out=tmp_path / "run")
    status = {(r.model, r.check): r.status for r in card.results}
    assert status == {
        ("embeds", "clean"): "not applicable",
        ("embeds", "embedding"): "done",
        ("classifies", "clean"): "done",
        ("classifies", "embedding"): "not applicable",
    }
    assert card.verdict["embeds"].startswith("Finds an item of the right class first for")
    assert "once each pixel may change by 0.2 in the query" in card.verdict["embeds"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('class="found"') == 16
    assert "✓" in page
    json.dumps(card.to_json(), allow_nan=False)


def test_a_named_gallery_is_the_training_part_or_all_there_is(embeds, small, tmp_path, monkeypatch):
    plan = make_plan(embeds, small, checks=[QUICK], given={"gallery": "digits"})
    assert len(plan.given["gallery"]) == len(ws.load_data("digits", split="train"))
    asked = []

    def like(name, data, split):
        asked.append(split)
        if split == "train":
            raise BadInput('split: got "train"; allowed: "all" or "test".')
        return small

    monkeypatch.setattr("withstand.audit.plan._like", like)
    assert make_plan(embeds, small, checks=[QUICK], given={"gallery": "one-part"}).given["gallery"] is small
    assert asked == ["train", "test"]


def test_labels_of_other_numbers_than_outputs_are_no_obstacle(embeds, small):
    assert make_plan(embeds, small, checks=[QUICK]).units()
    unlabelled = from_arrays(small.x, None)
    with pytest.raises(BadInput, match="labels"):
        make_plan(embeds, unlabelled, checks=[QUICK])
