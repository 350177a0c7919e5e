"""What every check promises; a new check is picked up from the registry and must be named here with quick settings."""

import copy
import json
import math

import pytest
import torch

from withstand.audit.check import Check, Table
from withstand.audit.store import as_table
from withstand.models import HiddenKNN, TorchTarget
from withstand.registry import entries, from_json, parse, to_json

QUICK = {
    "clean": "clean()",
    "robust": "robust(linf(0.1), attack=autoattack(steps=3, queries=10))",
    "curve": "curve(linf(0.1), radii=(0.05, 0.1, 0.3), attack=pgd(steps=3))",
    "per_class": "per_class()",
    "minimum_distance": "minimum_distance(linf(), attack=fab_t(steps=5, targets=2))",
    "corruptions": "corruptions(severities=(1, 5))",
    "blackbox": "blackbox(linf(0.2), attack=square(queries=30))",
    "transfer": "transfer(linf(0.2), attack=pgd(steps=3))",
    "guided": "guided(linf(0.2))",
    "knn": "knn(linf(0.2), steps=3, epochs=2)",
    "unfamiliar": "unfamiliar(k=3)",
    "detection": "detection(linf(0.2), attacks=(pgd(steps=3), fgsm()), detectors=('lid(k=3, batch=6)', 'mahalanobis'), "
    "steps=3, weights=(0.0, 1.0))",
    "certified": "certified(n0=20, n=200)",
    "trust": "trust(threat=linf(0.1), steps=2, queries=5)",
    "retrieval": "retrieval(linf(0.3), attack=qair(queries=25))",
    "embedding": "embedding(linf(0.2), attack=pgd(steps=3, objective=push_away()), ks=(1, 4))",
    "hashing": "hashing(linf(0.2), attack=pgd(steps=3, objective=push_away()), ks=(1, 5))",
    "training_curve": "training_curve()",
    "saliency": "saliency(steps=4)",
    "attributes": "attributes()",
}
SOME = (
    "trust",
    "training_curve",
    "embedding",
    "hashing",
    "attributes",
)  # measures some units under some conditions only
CHECKS = [e.name for e in entries("check") if e.module.startswith("withstand.audit.checks")]
N = 24


@pytest.fixture
def small(digits64, arrays):
    return arrays(digits64.x[:N], digits64.y[:N], "digits")


@pytest.fixture
def given(hardened64, noise, arrays, small):
    return {
        "surrogate": hardened64,
        "guide": hardened64,
        "substitute": hardened64,
        "masks": arrays((small.x > 0.2).double(), small.y, "masks"),
        "ood": arrays(noise.x.double(), noise.y, "noise", noise.classes),
    }


@pytest.fixture(scope="session")
def hardened64(hardened):
    from withstand.models.target import TorchTarget

    return TorchTarget(copy.deepcopy(hardened.model).double(), "hardened64", hardened.space)


@pytest.fixture(scope="session")
def engine64(plain64, digits64):
    """Digits by the model's own logits."""
    from withstand.models import ImageIndex

    return ImageIndex(copy.deepcopy(plain64.model).float(), digits64.x[100:].float(), k=4)


@pytest.fixture(scope="session")
def votes64(plain64, digits64):
    return HiddenKNN(plain64, ["7"], digits64.x[100:], digits64.y[100:]).target("votes64")


@pytest.fixture(scope="session")
def searches64(plain64):
    """The digits network up to its hidden layer, as an embedding and as codes."""
    hidden = torch.nn.Sequential(*list(plain64.model)[:7])
    hashed = torch.nn.Sequential(*list(plain64.model), torch.nn.Tanh())
    return {
        "embedding": TorchTarget(copy.deepcopy(hidden), "embeds64", plain64.space, "embedding"),
        "hashing": TorchTarget(copy.deepcopy(hashed), "hashes64", plain64.space, "hashing"),
    }


@pytest.fixture
def target_of(plain64, engine64, votes64, searches64):
    """What a check by this name is run on."""

    def find(name):
        check = parse(QUICK[name], "check")
        if check.task in searches64:
            return searches64[check.task]
        return engine64 if check.task == "retrieval" else votes64 if "neighbours" in check.access else plain64

    return find


@pytest.fixture
def done(run, small, target_of, given):
    """Run a check by name; the checks whose rows it reads run first."""

    def go(name, **settings):
        if name not in QUICK:
            pytest.fail(f"name quick settings for the check {name} in QUICK")
        check = parse(QUICK[name], "check")
        settings.setdefault("others", {kind: go(kind).table for kind in check.after if kind in QUICK})
        return run(check, target_of(name), small, given, **settings)

    return go


def plain_rows(rows):
    every = [r for r in rows if r.unit != "model"]  # what is said of the model as a whole, each shard says anew
    return sorted(
        (r.unit, r.id, json.dumps(r.condition, sort_keys=True), r.outcome, r.label, r.prediction) for r in every
    )


def numbers(rows):
    key = lambda r: (r.unit, r.id, json.dumps(r.condition, sort_keys=True))  # noqa: E731
    return [x for r in sorted(rows, key=key) for x in (r.value, r.distance) if r.unit != "model"]


@pytest.mark.parametrize("name", CHECKS)
def test_rows_do_not_depend_on_how_the_data_is_split(done, name):
    whole = done(name)
    for other in (done(name, shard=7), done(name, shard=5, shuffle=True)):
        assert plain_rows(whole.rows) == plain_rows(other.rows)
        for a, b in zip(numbers(whole.rows), numbers(other.rows), strict=True):
            assert a == b if a is None or b is None else a == pytest.approx(b, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", CHECKS)
def test_every_row_can_be_stored_and_each_condition_has_every_unit_once(done, name):
    found = done(name)
    groups: dict[str, list] = {}
    for row in found.rows:
        assert json.loads(json.dumps(row.condition)) == row.condition
        assert row.outcome is None or isinstance(row.outcome, bool)
        assert row.value is None or math.isfinite(row.value)
        groups.setdefault(json.dumps(row.condition, sort_keys=True), []).append((row.unit, row.id))
    units = {u for g in groups.values() for u in g}
    assert all(len(g) == len(set(g)) for g in groups.values())
    assert name in SOME or all(set(g) == units for g in groups.values())


@pytest.mark.parametrize("name", CHECKS)
def test_reduce_works_on_any_subset_of_shards(done, name, plain64, small, given, run):
    found = done(name, shard=6)
    check = parse(QUICK[name], "check")
    others = {kind: done(kind).table for kind in check.after}
    ids = sorted({r.id for r in found.rows})
    for kept in (set(ids[:6]), set(ids[7:8])):
        part = Table(as_table([r for r in found.rows if r.id in kept]))
        if check.own_rows and len(part):
            check_findings(check.reduce(part, others, found.ctx))


@pytest.mark.parametrize("name", CHECKS)
def test_findings_follow_the_scorecards_schema(done, name):
    found = done(name)
    assert found.findings.metrics or found.findings.flags
    assert found.findings.figures
    check_findings(found.findings)
    for figure in (f for f in found.findings.figures if f.kind == "gallery"):
        for item in figure.data["items"]:
            for image in ("clean", "adversarial", "difference"):
                assert (found.ctx.root / item[image]).is_file()


@pytest.mark.parametrize("name", CHECKS)
def test_the_estimate_is_an_upper_bound(done, name, target_of, small, given):
    found, target = done(name), target_of(name)
    check = parse(QUICK[name], "check")
    examples = len(check.examples_of(small, given)) if check.own_rows else 0
    spent = (found.ctx.cost.get("forwards", 0) + found.ctx.cost.get("backwards", 0)) / 2
    assert (spent > 0) == (check.passes(target) > 0)
    assert spent <= check.passes(target) * examples


@pytest.mark.parametrize("name", CHECKS)
def test_settings_round_trip(name):
    check = parse(QUICK[name], "check")
    assert isinstance(check, Check)
    assert parse(repr(check), "check") == check
    assert from_json(json.loads(json.dumps(to_json(check)))) == check
    assert parse(f"{name}(examples=5)", "check").examples == 5


def check_findings(findings):
    json.dumps([f.data for f in findings.figures], allow_nan=False)
    seen = set()
    for m in findings.metrics:
        assert math.isfinite(m.value)
        assert m.interval
        assert m.n > 0
        if m.low is not None and m.high is not None:
            assert m.low <= m.high
            if m.name != "ece":  # the bootstrap of a sum of absolute values lies above it
                assert m.low - 1e-9 <= m.value <= m.high + 1e-9
        assert json.loads(json.dumps(m.condition)) == m.condition
        key = (m.name, json.dumps(m.condition, sort_keys=True))
        assert key not in seen
        seen.add(key)
    for figure in findings.figures:
        assert figure.title
        SCHEMAS[figure.kind](figure.data)


def curve(d):
    assert (
        {"x_label", "y_label", "x", "series"}
        <= d.keys()
        <= {"x_label", "y_label", "x", "x_ticks", "log_x", "diagonal", "series"}
    )
    assert d["x"] == sorted(d["x"])
    assert len(d.get("x_ticks", d["x"])) == len(d["x"])
    for s in d["series"]:
        assert {"name", "y"} <= s.keys() <= {"name", "y", "low", "high"}
        assert all(len(s[k]) == len(d["x"]) for k in s if k != "name")


def bars(d):
    assert d.keys() - {"unit"} == {"labels", "y_label", "series"}
    for s in d["series"]:
        assert {"name", "values"} <= s.keys() <= {"name", "values", "low", "high"}
        assert all(len(s[k]) == len(d["labels"]) for k in s if k != "name")


def heatmap(d):
    assert d.keys() == {"row_label", "column_label", "rows", "columns", "values", "unit", "better"}
    assert len(d["values"]) == len(d["rows"])
    assert all(len(row) == len(d["columns"]) for row in d["values"])


def table(d):
    assert d.keys() == {"columns", "rows"}
    assert all(len(row) == len(d["columns"]) for row in d["rows"])


def gallery(d):
    item = {
        "id", "label", "clean_prediction", "adversarial_prediction", "clean_confidence", "adversarial_confidence",
        "distance", "condition", "clean", "adversarial", "difference",
    }  # fmt: skip
    assert d.keys() - {"after"} == {"magnified", "items"}
    assert 0 < len(d["items"]) <= 12
    assert all(i.keys() == item for i in d["items"])


def maps(d):
    assert d.keys() == {"items"}
    assert 0 < len(d["items"]) <= 8
    assert all(i.keys() == {"id", "label", "prediction", "image", "map"} for i in d["items"])


def neighbours(d):
    assert d.keys() == {"items", "unit"}
    assert 0 < len(d["items"]) <= 8
    for item in d["items"]:
        assert item.keys() == {"id", "label", "distance", "condition", "clean", "adversarial", "before", "after"}
        for near in (*item["before"], *item["after"]):
            assert {"id", "label", "relevant", "distance"} <= near.keys() <= {
                "id", "label", "relevant", "distance", "image",
            }  # fmt: skip


SCHEMAS = {
    "neighbours": neighbours,
    "maps": maps,
    "curve": curve,
    "bars": bars,
    "heatmap": heatmap,
    "table": table,
    "gallery": gallery,
}
