import numpy as np
import pytest

from withstand.audit.check import Table
from withstand.audit.store import as_table
from withstand.metrics import wilson
from withstand.protocols import Context, Row
from withstand.registry import parse

ROBUST = {"attack": "pgd", "threat": "linf", "eps": 0.1}


def tables(labels, right, stood):
    rows = [
        Row("image", i, {"measure": "confidence"}, bool(r), 0.5, int(c)) for i, (c, r) in enumerate(zip(labels, right))
    ]
    attacked = [Row("image", i, ROBUST, bool(s), 0.5, int(c)) for i, (c, s) in enumerate(zip(labels, stood))]
    parts = [Row("image", i, {"part": "x"}, None, 1.0, int(c)) for i, c in enumerate(labels)]
    return {"clean": Table(as_table(rows)), "robust": Table(as_table(attacked + parts))}


@pytest.fixture
def made():
    g = np.random.default_rng(0)
    labels = g.integers(0, 4, 200)
    labels[labels == 2] = 0  # class 2 has no example
    right = g.random(200) < 0.9 - 0.1 * labels
    return labels, right, right & (g.random(200) < 0.5)


def test_the_worst_class_is_the_one_with_the_lowest_share(made):
    labels, right, stood = made
    found = parse("per_class").reduce(Table(as_table([])), tables(*made), Context(classes=("a", "b", "c", "d")))
    for name, hits in (("worst_class_accuracy", right), ("worst_class_robust_accuracy", stood)):
        shares = {c: hits[labels == c].mean() for c in (0, 1, 3)}
        worst = min(shares, key=shares.get)
        metric = next(m for m in found.metrics if m.name == name)
        assert metric.value == pytest.approx(shares[worst])
        assert metric.condition["class"] == "abcd"[worst]
        bounds = [wilson(int(hits[labels == c].sum()), int((labels == c).sum()), 1 - 0.05 / 3) for c in (0, 1, 3)]
        assert (metric.low, metric.high) == (min(b[0] for b in bounds), min(b[1] for b in bounds))
    assert found.metrics[1].condition["eps"] == 0.1


def test_the_bars_hold_every_class_that_has_examples(made):
    labels, right, stood = made
    data = parse("per_class").reduce(Table(as_table([])), tables(*made), Context()).figures[0].data
    assert data["labels"] == ["0", "1", "3"]
    assert [s["name"] for s in data["series"]] == ["clean", "under Linf 0.1"]
    for series, hits in zip(data["series"], (right, stood)):
        assert series["values"] == pytest.approx([hits[labels == c].mean() for c in (0, 1, 3)])


def test_of_many_classes_the_worst_are_shown():
    labels = np.repeat(np.arange(50), 4)
    right = np.tile([1, 1, 1, 0], 50).astype(bool)
    right[4 * 37 : 4 * 38] = False
    others = {"clean": tables(labels, right, right)["clean"]}
    figure = parse("per_class").reduce(Table(as_table([])), others, Context()).figures[0]
    assert len(figure.data["labels"]) == 30
    assert "37" in figure.data["labels"]
    assert "30 worst of 50" in figure.caption
