"""Measures of the sphere against pairs counted one by one."""

import itertools
import math

import pytest
import torch

from withstand.errors import BadInput
from withstand.random import Rows
from withstand.representation import measures as m


def drawn(n: int = 17, d: int = 5) -> torch.Tensor:
    z = Rows.count(1, n).normal((d,), "z", dtype=torch.float64)
    return z / z.norm(dim=1, keepdim=True)


def test_alignment_and_uniformity_of_what_is_known():
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert m.uniformity(two) == pytest.approx(-8)
    assert m.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    assert m.alignment(two, two) == 0
    assert m.alignment(two, two.flip(0)) == pytest.approx(4)
    with pytest.raises(BadInput, match="other view of each"):
        m.alignment(two, two[:1])
    with pytest.raises(BadInput, match="two or more"):
        m.uniformity(two[:1])


def test_uniformity_counts_every_pair_once_whatever_the_block(monkeypatch):
    z = drawn()
    pairs = [math.exp(-2 * float((a - b).square().sum())) for a, b in itertools.combinations(z, 2)]
    for block in (1, 4, 17, 100):
        monkeypatch.setattr(m, "_BLOCK", block)
        assert m.uniformity(3 * z) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-12)


def test_class_geometry_pair_by_pair():
    z, labels = drawn(), torch.arange(17) % 4
    means = [z[labels == c].mean(0) for c in range(4)]
    radius = sum(float((z[i] - means[labels[i]]).norm()) for i in range(17)) / 17
    margin = min(float((a - b).norm()) for a, b in itertools.combinations(means, 2))
    cosines = {True: [], False: []}
    for i, j in itertools.combinations(range(17), 2):
        cosines[bool(labels[i] == labels[j])].append(float(z[i] @ z[j]))
    found = m.representation_measures(z, labels)
    assert found["intra_class_radius"] == pytest.approx(radius)
    assert found["inter_class_margin"] == pytest.approx(margin)
    assert found["inter_intra_ratio"] == pytest.approx(margin / radius)
    assert found["same_class_cosine"] == pytest.approx(sum(cosines[True]) / len(cosines[True]))
    assert found["other_class_cosine"] == pytest.approx(sum(cosines[False]) / len(cosines[False]))
    assert found["uniformity"] == pytest.approx(m.uniformity(z))
    assert found["effective_rank"] == pytest.approx(m.effective_rank(z))
    lengths = torch.arange(1, 18)[:, None]
    assert m.representation_measures(lengths * z, labels)["effective_rank"] == pytest.approx(found["effective_rank"])


def test_classes_of_one_point_each_have_no_radius():
    found = m.class_geometry(torch.eye(3), torch.arange(3))
    assert found["inter_intra_ratio"] == math.inf
    assert math.isnan(found["same_class_cosine"])
    assert found["inter_class_margin"] == pytest.approx(math.sqrt(2))


def test_bad_input_is_refused():
    with pytest.raises(BadInput, match="1 class"):
        m.class_geometry(drawn(), torch.zeros(17, dtype=torch.long))
    with pytest.raises(BadInput, match="one label for each"):
        m.class_geometry(drawn(), torch.zeros(3, dtype=torch.long))
    with pytest.raises(BadInput, match="finite"):
        m.uniformity(drawn() * torch.nan)
    with pytest.raises(BadInput, match="no gap"):
        m.gap_closed(0.5, 0.6, 0.6)
    with pytest.raises(BadInput, match="accuracy"):
        m.relative_drop(0.0, 0.0)


def test_the_gap_closed_is_nothing_for_the_plain_and_all_for_the_reference():
    assert m.gap_closed(0.4, 0.4, 0.9) == 0
    assert m.gap_closed(0.9, 0.4, 0.9) == 1
    assert m.gap_closed(0.5, 0.4, 0.9) == pytest.approx(0.2)
    assert m.relative_drop(0.8, 0.6) == pytest.approx(0.25)


def test_sensitivity_of_a_linear_map_is_its_stretch():
    x = drawn(4, 3)
    moved = x.clone()
    moved[:3, 0] += torch.tensor([0.1, -0.2, 0.5])
    found = m.sensitivity(lambda v: v * torch.tensor([3.0, 1.0, 1.0]), x, moved)
    assert torch.allclose(found, torch.tensor([3.0, 3.0, 3.0, 0.0]).double())


def test_the_effective_rank_counts_directions():
    assert m.effective_rank(torch.eye(4)) == pytest.approx(4)
    assert m.effective_rank(torch.ones(6, 3)) == pytest.approx(1, abs=1e-5)
    values = torch.tensor([3.0, 1.0])
    p = values / 4
    assert m.effective_rank(torch.diag(values)) == pytest.approx(math.exp(-float((p * p.log()).sum())))
    with pytest.raises(BadInput, match="zero"):
        m.effective_rank(torch.zeros(3, 2))


def test_precision_is_the_share_of_pairs_of_one_label():
    selected = torch.zeros(4, 4, dtype=torch.bool)
    labels = torch.tensor([0, 0, 1, 1])
    assert math.isnan(m.false_negative_precision(selected, labels))
    selected[0, 1] = selected[0, 2] = selected[1, 3] = True
    assert m.false_negative_precision(selected, labels) == pytest.approx(1 / 3)
