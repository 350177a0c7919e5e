"""The measures of retrieval, against loops that say what they mean."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from withstand.errors import BadInput
from withstand.index import CodeIndex, Index
from withstand.representation import labels as labels_module
from withstand.representation import metrics as m


def draws(seed):
    return torch.Generator().manual_seed(seed)


def case(seed, n=40, classes=6, dim=3, coarse=True):
    """Embeddings with duplicates and ties, and labels with empty classes and singletons."""
    g = draws(seed)
    e = torch.randn(n, dim, generator=g)
    e = e.sign() * torch.randint(1, 3, (n, dim), generator=g) if coarse else e  # few different vectors
    y = torch.randint(0, classes, (n,), generator=g)
    y[0] = classes + 3  # a class of one, and classes of none before it
    return e, y


def distance_of(a, b, metric):
    a, b = a.double(), b.double()
    return (a - b).norm().item() if metric == "l2" else (1 - (a @ b) / (a.norm() * b.norm())).item()


def listed(e, i, e_db, own, metric):
    """Positions of the database by distance, then by position."""
    order = [j for j in range(len(e_db)) if j != own]
    return sorted(order, key=lambda j: (distance_of(e[i], e_db[j], metric), j))


def shares(a, b):
    return bool((a * b).sum() > 0) if a.dim() else bool(a == b)


def ap(hits, by):
    total, seen = 0.0, 0
    for place, hit in enumerate(hits, 1):
        if hit:
            seen += 1
            total += seen / place
    return total / by if by else 0.0


def naive(e, y, e_db, y_db, ks, own=True, metric="cosine"):
    rows = []
    for i in range(len(e)):
        hits = [shares(y[i], y_db[j]) for j in listed(e, i, e_db, i if own else -1, metric)]
        r = sum(hits)
        row = {f"recall_at_{k}": float(any(hits[:k])) for k in ks}
        row |= {f"map_at_{k}": ap(hits[:k], sum(hits[:k])) for k in ks}
        row |= {"r_precision": sum(hits[:r]) / max(r, 1), "map_at_r": ap(hits[:r], r)}
        rows.append((row, r))
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_embeddings_are_those_of_a_loop(seed):
    metric = "cosine" if seed % 2 else "l2"
    e, y = case(seed, coarse=metric == "l2")  # whole numbers are equally far exactly
    found = m.retrieval_scores(e, y, ks=(1, 3, 10), metric=metric, lone="zero")
    for i, (row, _) in enumerate(naive(e, y, e, y, (1, 3, 10), metric=metric)):
        for name, value in row.items():
            assert found[name][i].item() == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(3))
def test_scores_against_a_database_with_several_labels(seed):
    g = draws(seed)
    e, e_db = torch.randn(15, 4, generator=g), torch.randn(50, 4, generator=g)
    y, y_db = ((torch.rand(n, 5, generator=g) < 0.3).float() for n in (15, 50))
    found = m.retrieval_scores(e, y, e_db, y_db, ks=(1, 5), lone="skip")
    for i, (row, r) in enumerate(naive(e, y, e_db, y_db, (1, 5), own=False)):
        for name, value in row.items():
            assert found[name][i].isnan() if r == 0 else found[name][i].item() == pytest.approx(value, abs=1e-12)


def test_large_and_small_classes_are_cut_into_blocks_without_a_difference(monkeypatch):
    e, y = case(1, 120, 3, coarse=False)
    y[:70] = 0
    whole = m.retrieval_scores(e, y, ks=(1, 2), lone="zero")
    monkeypatch.setattr(m, "_VALUES", 60)
    monkeypatch.setattr(labels_module, "_PAIRS", 50)
    for name, values in m.retrieval_scores(e, y, ks=(1, 2), lone="zero").items():
        assert torch.equal(values, whole[name])


def test_a_given_index_and_a_position_that_does_not_count():
    e, y = case(2, coarse=False)
    alone = m.retrieval_scores(e, y, ks=(1, 4), lone="zero")
    given = m.retrieval_scores(e, y, Index(e), y, ks=(1, 4), lone="zero", without=torch.arange(len(e)))
    for name in alone:
        assert torch.equal(alone[name], given[name])


def test_queries_that_leave_nothing_out_stand_beside_those_that_do():
    e, y = case(4, coarse=False)
    y[0] = y[1]  # the first item is relevant to some that do not leave it out
    without = torch.arange(len(e))
    without[5:] = -1
    mixed = m.retrieval_scores(e, y, Index(e), y, ks=(1, 4), lone="zero", without=without)
    codes = torch.where(e >= 0, 1, -1)
    mixed_codes = m.code_scores(codes, y, codes, y, lone="zero", without=without)
    for own, rows in ((True, slice(0, 5)), (False, slice(5, None))):
        left = {"without": torch.arange(len(e))} if own else {}
        for name, values in m.retrieval_scores(e, y, Index(e), y, ks=(1, 4), lone="zero", **left).items():
            assert torch.equal(mixed[name][rows], values[rows]), name
        for name, values in m.code_scores(codes, y, codes, y, lone="zero", **left).items():
            assert torch.equal(mixed_codes[name][rows], values[rows]), name


def test_scores_are_those_of_pytorch_metric_learning():
    pml = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    pytest.importorskip("faiss")
    from pytorch_metric_learning.utils.inference import FaissKNN

    e, y = case(3, 90, 5, 8, coarse=False)
    unit = torch.nn.functional.normalize(e)
    calculator = pml.AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision"),
        k=len(e) - 1,
        device=torch.device("cpu"),
        knn_func=FaissKNN(reset_before=True, reset_after=True),
    )
    theirs = calculator.get_accuracy(unit, y)
    ours = m.retrieval_metrics(e, y, ks=(1, len(e) - 1), lone="skip")
    assert ours["recall_at_1"] == pytest.approx(theirs["precision_at_1"], abs=1e-9)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert ours["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
    # of the whole list both divide by all relevant items
    assert ours[f"map_at_{len(e) - 1}"] == pytest.approx(theirs["mean_average_precision"], abs=1e-6)


# Codes ---------------------------------------------------------------------------------------------------------------


def random_codes(seed, n, bits):
    return torch.where(torch.rand(n, bits, generator=draws(seed)) < 0.5, -1, 1)


@pytest.mark.parametrize(("seed", "bits"), [(0, 3), (1, 8), (2, 11), (3, 70)])
def test_scores_of_codes_are_those_of_a_loop(seed, bits):
    b, b_db = random_codes(seed, 12, bits), random_codes(seed + 100, 40, bits)
    g = draws(seed)
    y, y_db = torch.randint(0, 5, (12,), generator=g), torch.randint(0, 4, (40,), generator=g)
    found = m.code_scores(b, y, b_db, y_db, ks=(1, 7), radius=2, lone="zero")
    for i in range(12):
        far = [(b[i] != b_db[j]).sum().item() for j in range(40)]
        hits = [bool(y[i] == y_db[j]) for j in sorted(range(40), key=lambda j: (far[j], j))]
        ball = [bool(y[i] == y_db[j]) for j in range(40) if far[j] <= 2]
        want = {
            "map": ap(hits, sum(hits)),
            "map_at_1": ap(hits[:1], sum(hits[:1])),
            "map_at_7": ap(hits[:7], sum(hits[:7])),
            "recall_at_7": float(any(hits[:7])),
            "precision_at_radius_2": sum(ball) / max(len(ball), 1),
            "recall_at_radius_2": sum(ball) / max(sum(hits), 1),
        }
        for name, value in want.items():
            assert found[name][i].item() == pytest.approx(value, abs=1e-12), name


def test_tie_averaged_precision_is_the_mean_over_all_orders():
    b = torch.tensor([[1, 1]])
    b_db = torch.tensor([[1, 1], [1, -1], [-1, 1], [1, -1], [-1, -1], [-1, -1]])
    y, y_db = torch.tensor([1]), torch.tensor([0, 1, 0, 1, 1, 0])
    far = (b != b_db).sum(1).tolist()
    seen = []
    for order in itertools.permutations(range(6)):
        hits = [bool(y_db[j] == 1) for j in sorted(order, key=lambda j: far[j])]
        seen.append(ap(hits, sum(hits)))
    average = m.code_scores(b, y, b_db, y_db, ties="average")["map"].item()
    assert average == pytest.approx(np.mean(seen), abs=1e-12)
    assert min(seen) <= m.mean_average_precision(b, y, b_db, y_db) <= max(seen)


def test_ties_do_not_matter_where_there_are_none():
    b_db = torch.tril(torch.full((9, 9), 2)) - 1  # at 0, 1, 2, ... bits from each other
    y_db = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0])
    b, y = b_db[:1], torch.tensor([1])
    stable, average = (m.code_scores(b, y, b_db, y_db, ties=t)["map"] for t in ("stable", "average"))
    assert torch.allclose(stable, average, atol=1e-12)


def test_known_average_precisions():
    def of(relevance):
        b_db = torch.tril(torch.full((6, 6), 2))[: len(relevance)] - 1
        b = -torch.ones(1, 6)  # the first is one bit away, the second two, ...
        return m.mean_average_precision(b, torch.tensor([1]), b_db, torch.tensor(relevance))

    assert of([1, 0, 1, 1, 0]) == pytest.approx(0.805556, abs=1e-6)
    assert of([0, 1, 0, 0, 1]) == pytest.approx(0.45, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_map_does_not_care_for_the_names_of_bits(seed, bits):
    b, b_db = random_codes(seed, 5, bits), random_codes(seed + 1, 20, bits)
    g = draws(seed)
    y, y_db = torch.randint(0, 3, (5,), generator=g), torch.randint(0, 3, (20,), generator=g)
    order, flip = torch.randperm(bits, generator=g), random_codes(seed + 2, 1, bits)
    before = m.mean_average_precision(b, y, b_db, y_db)
    assert m.mean_average_precision((b * flip)[:, order], y, (b_db * flip)[:, order], y_db) == before


def test_leaving_one_out_of_codes_is_a_database_without_it():
    b, y = random_codes(5, 30, 6), torch.randint(0, 4, (30,), generator=draws(5))
    found = m.code_scores(b, y, ks=(3,), lone="zero")
    averaged = m.code_scores(b, y, ties="average", lone="zero")
    for i in (0, 7, 29):
        rest = torch.arange(30) != i
        alone = m.code_scores(b[i : i + 1], y[i : i + 1], b[rest], y[rest], ks=(3,), lone="zero")
        for name in found:
            assert found[name][i] == alone[name][0], name
        other = m.code_scores(b[i : i + 1], y[i : i + 1], b[rest], y[rest], ties="average", lone="zero")
        assert averaged["map"][i].item() == pytest.approx(other["map"].item(), abs=1e-12)


def test_a_target_map_takes_the_labels_aimed_at():
    b_db, y_db = torch.tensor([[1, 1, 1], [-1, -1, -1]]), torch.tensor([0, 1])
    b = torch.tensor([[1, 1, 1]])
    assert m.mean_average_precision(b, torch.tensor([0]), b_db, y_db) == 1.0
    assert m.mean_average_precision(b, torch.tensor([1]), b_db, y_db) == 0.5
    assert m.mean_average_precision(b, torch.tensor([2]), b_db, y_db) == 0.0
    assert m.mean_average_precision(b, torch.tensor([1]), b_db, y_db, topk=1) == 0.0


def test_distinct_codes_are_counted():
    assert m.distinct_codes(torch.tensor([[1, -1, 1], [1, -1, 1], [-1, -1, 1]])) == 2


# Clusters ------------------------------------------------------------------------------------------------------------


def test_clusters_that_are_the_classes_agree_wholly():
    y = torch.arange(4).repeat_interleave(10)
    e = torch.eye(4)[y] + 0.01 * torch.randn(40, 4, generator=draws(0))
    assert m.normalized_mutual_information(e, y) == pytest.approx(1.0)
    assert m.normalized_mutual_information(torch.ones(40, 3), y) == 0.0


def test_clusters_of_two_points_a_class_are_known():
    y, e = torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert m.normalized_mutual_information(e, y) == pytest.approx(
        normalized_mutual_info_score([0, 0, 1, 1], [0, 1, 0, 1])
    )


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embeddings": torch.full((4, 2), torch.nan)}, "NaN"),
        ({"labels": torch.tensor([0, 0, 1, 2])}, "2 queries to which nothing is relevant, the first is 2 with label 1"),
        ({"labels": torch.tensor([0, 0, 1])}, "int \\[4\\]"),
        ({"labels": torch.tensor([0.0, 0, 1, 1])}, "int labels"),
        ({"labels": torch.full((4, 2), 0.5)}, "zeros and ones"),
        ({"ks": (1, 4)}, "1 to 3"),
        ({"lone": "drop"}, "lone"),
        ({"database": torch.zeros(0, 2), "database_labels": torch.zeros(0).long()}, "at least one vector"),
        ({"database": torch.ones(2, 2)}, "database_labels"),
        ({"database": torch.ones(2, 3), "database_labels": torch.tensor([0, 1])}, "queries"),
        ({"database": torch.ones(2, 2), "database_labels": torch.ones(2, 3)}, "same form"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, said):
    good = {"embeddings": torch.randn(4, 2, generator=draws(0)), "labels": torch.tensor([0, 0, 1, 1]), "ks": (1,)}
    with pytest.raises(BadInput, match=said):
        m.retrieval_scores(**(good | change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": torch.zeros(3, 4)}, "a value 0"),
        ({"codes": torch.ones(3, 5)}, "codes of 5 bits"),
        ({"database": torch.ones(0, 4), "database_labels": torch.ones(0).long()}, "at least one code"),
        ({"ks": (6,)}, "1 to 5"),
        ({"ks": (2,), "ties": "average"}, "ties"),
        ({"radius": 5}, "0 to 4"),
        ({"ties": "random"}, "stable"),
        ({"labels": torch.tensor([0, 9, 0])}, "nothing is relevant"),
    ],
)
def test_codes_that_cannot_be_measured_are_refused(change, said):
    good = {"codes": torch.ones(3, 4), "labels": torch.zeros(3).long(), "database": torch.ones(5, 4)}
    with pytest.raises(BadInput, match=said):
        m.code_scores(**(good | {"database_labels": torch.zeros(5).long()} | change))


def test_no_query_that_counts_is_an_error():
    with pytest.raises(BadInput, match="nothing relevant to any query"):
        m.retrieval_metrics(torch.eye(3), torch.arange(3), ks=(1,), lone="skip")


def test_packed_codes_and_bools_are_the_same_codes():
    from withstand.index import pack

    b, y = random_codes(1, 20, 13), torch.randint(0, 2, (20,), generator=draws(1))
    want = m.code_scores(b, y)
    assert torch.equal(m.code_scores(b > 0, y)["map"], want["map"])
    index = CodeIndex(pack(b), bits=13)
    found = m.code_scores(pack(b), y, index, y, without=torch.arange(20))
    assert torch.equal(found["map"], want["map"])
