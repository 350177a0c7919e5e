"""Density and spectral decay, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from withstand.errors import BadInput
from withstand.representation.density import density, spectral_decay


def cosine_distance(a, b):
    return 1 - F.cosine_similarity(a.double(), b.double(), dim=0).item()


def mean_of_pairs(points):
    pairs = [(i, j) for i in range(len(points)) for j in range(len(points)) if i != j]
    return sum(cosine_distance(points[i], points[j]) for i, j in pairs) / len(pairs)


def test_density_is_that_of_a_loop():
    g = torch.Generator().manual_seed(0)
    e, y = torch.randn(30, 5, generator=g), torch.randint(0, 4, (30,), generator=g)
    y[3] = 9  # a class of one has no pairs
    unit = F.normalize(e.double(), dim=1)
    classes = [unit[y == c] for c in y.unique()]
    intra = [mean_of_pairs(points) for points in classes if len(points) > 1]
    found = density(e, y)
    assert found["pi_intra"] == pytest.approx(sum(intra) / len(intra), abs=1e-9)
    assert found["pi_inter"] == pytest.approx(mean_of_pairs(torch.stack([c.mean(0) for c in classes])), abs=1e-9)
    assert found["pi_ratio"] == pytest.approx(found["pi_intra"] / found["pi_inter"])


def test_embeddings_that_are_all_equal_have_no_ratio():
    found = density(torch.full((6, 3), 0.7), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert found["pi_intra"] == found["pi_inter"] == 0.0
    assert math.isnan(found["pi_ratio"])
    assert found["rho"] == 0.0


def test_what_is_undefined_is_nan():
    e = torch.eye(3)
    assert math.isnan(density(e, torch.arange(3))["pi_intra"])
    assert math.isnan(density(e, torch.zeros(3).long())["pi_inter"])


def test_decay_is_the_divergence_from_the_uniform():
    e = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    s = torch.linalg.svd(e.double()).S
    p = s / s.sum()
    want = sum(1 / 6 * math.log((1 / 6) / v) for v in p.tolist())
    assert spectral_decay(e) == pytest.approx(want, abs=1e-9)
    assert spectral_decay(torch.eye(4)) == pytest.approx(0.0, abs=1e-12)


def test_directions_that_are_not_used_do_not_count():
    e = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    turned = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3))).Q[:3]
    assert spectral_decay(e @ turned) == pytest.approx(spectral_decay(e), abs=1e-4)
    assert spectral_decay((e @ turned).double()) == pytest.approx(spectral_decay(e), abs=1e-4)  # with single's rounding


@pytest.mark.parametrize(
    ("e", "y", "said"),
    [
        (torch.full((3, 2), torch.inf), torch.arange(3), "infinite"),
        (torch.ones(3), torch.arange(3), "\\[N, D\\]"),
        (torch.ones(3, 2), torch.arange(2), "int labels"),
    ],
)
def test_what_has_no_density_is_refused(e, y, said):
    with pytest.raises(BadInput, match=said):
        density(e, y)
