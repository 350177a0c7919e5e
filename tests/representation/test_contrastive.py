"""Contrastive losses against sums written out by hand, and their exact properties."""

import math

import pytest
import torch

from withstand.errors import BadInput
from withstand.random import Rows
from withstand.representation.contrastive import (
    attraction,
    debiased,
    nt_xent,
    other_views,
    same_label,
    supcon,
    two_views,
)


def views(n: int = 5, d: int = 4, seed: int = 0) -> torch.Tensor:
    z = Rows.count(seed, 2 * n).normal((d,), "views", dtype=torch.float64)
    return z / z.norm(dim=1, keepdim=True)


def by_hand(z, positives, dropped, tau):
    """Anchor by anchor: -mean over positives of s + log of the sum over what is left."""
    out = []
    for i in range(len(z)):
        s = [float(z[i] @ z[a]) / tau for a in range(len(z))]
        total = sum(math.exp(s[a]) for a in range(len(z)) if a != i and a not in dropped[i])
        out.append(math.log(total) - sum(s[p] for p in positives[i]) / len(positives[i]))
    return torch.tensor(out, dtype=torch.float64)


def some_mask(m: int, seed: int = 3) -> torch.Tensor:
    return Rows.count(seed, m).uniform((m,), "mask") < 0.3


def test_nt_xent_is_the_sum_by_hand():
    z, mask = views(), some_mask(10)
    pairs = two_views(5)
    positives = [[int(p)] for p in pairs]
    assert torch.allclose(nt_xent(z, pairs, 0.3), by_hand(z, positives, [[]] * 10, 0.3), atol=1e-12)
    dropped = [[a for a in range(10) if mask[i, a] and a != pairs[i]] for i in range(10)]
    assert torch.allclose(nt_xent(z, pairs, 0.3, mask), by_hand(z, positives, dropped, 0.3), atol=1e-12)


def test_pairs_may_stand_anywhere():
    z, pairs = views(), two_views(5)
    order = torch.tensor([3, 8, 0, 1, 5, 2, 9, 4, 6, 7])
    place = torch.argsort(order)
    assert torch.allclose(nt_xent(z[order], place[pairs[order]], 0.5), nt_xent(z, pairs, 0.5)[order], atol=1e-12)


def test_several_views_of_an_example_are_all_positives():
    others = other_views(2, 3)
    assert others.tolist() == [[2, 4], [3, 5], [4, 0], [5, 1], [0, 2], [1, 3]]
    assert torch.equal(other_views(5, 2)[:, 0], two_views(5))
    z, mask = views(6), some_mask(12)
    positives = other_views(3, 4).tolist()
    dropped = [[a for a in range(12) if mask[i, a] and a not in positives[i]] for i in range(12)]
    assert torch.allclose(nt_xent(z, other_views(3, 4), 0.3, mask), by_hand(z, positives, dropped, 0.3), atol=1e-12)
    same = supcon(z, torch.arange(3).repeat(4), 0.3)
    assert torch.allclose(nt_xent(z, other_views(3, 4), 0.3), same, atol=1e-12)
    with pytest.raises(BadInput, match="4 views of each"):
        nt_xent(z[:10], other_views(3, 4)[:10], 0.3)


def debiased_by_hand(z, pairs, tau, share):
    out = []
    for i in range(len(z)):
        e = [math.exp(float(z[i] @ z[a]) / tau) for a in range(len(z))]
        near = e[int(pairs[i])]
        far = [e[a] for a in range(len(z)) if a not in (i, int(pairs[i]))]
        g = max((sum(far) / len(far) - share * near) / (1 - share), math.exp(-1 / tau))
        out.append(math.log(near + len(far) * g) - math.log(near))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_debiased_loss_is_the_sum_by_hand(share):
    z, pairs = views(), two_views(5)
    assert torch.allclose(debiased(z, pairs, 0.5, share), debiased_by_hand(z, pairs, 0.5, share), atol=1e-12)


def test_without_a_share_the_debiased_loss_is_nt_xent_bit_for_bit():
    z, pairs = views().float(), two_views(5)
    assert torch.equal(debiased(z, pairs, 0.2, 0.0), nt_xent(z, pairs, 0.2))
    assert torch.allclose(debiased(z, pairs, 0.2, 1e-7), nt_xent(z, pairs, 0.2), atol=1e-5)


def test_the_debiased_loss_of_two_orthogonal_pairs():
    z, pairs = torch.eye(2)[[0, 0, 1, 1]], torch.tensor([1, 0, 3, 2])
    g = (1 - 0.1 * math.e) / 0.9
    assert torch.allclose(debiased(z, pairs, 1.0, 0.1), torch.full((4,), math.log(math.e + 2 * g) - 1))
    floor = math.log(math.e + 2 / math.e) - 1  # 1 - 0.5 e is below exp(-1)
    assert torch.allclose(debiased(z, pairs, 1.0, 0.5), torch.full((4,), floor))


def test_the_debiased_loss_holds_at_low_temperatures():
    z = views().float().requires_grad_(True)
    loss = debiased(z, two_views(5), 0.005, 0.1)
    loss.sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(loss).all()
    with pytest.raises(BadInput, match="tau_plus"):
        debiased(z, two_views(5), 0.5, 1.0)
    with pytest.raises(BadInput, match="two examples"):
        debiased(z[:2], two_views(1), 0.5, 0.1)


def test_two_orthogonal_pairs():
    z = torch.eye(2)[[0, 0, 1, 1]]
    pairs = torch.tensor([1, 0, 3, 2])
    assert torch.allclose(nt_xent(z, pairs, 1.0), torch.full((4,), math.log(math.e + 2) - 1))
    assert math.log(math.e + 2) - 1 == pytest.approx(0.551445, abs=1e-6)
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert nt_xent(z, pairs, 1.0, everything).abs().max() < 1e-6


def test_nothing_removed_is_plain_bit_for_bit():
    z, pairs = views().float(), two_views(5)
    plain = nt_xent(z, pairs, 0.2)
    assert torch.equal(plain, nt_xent(z, pairs, 0.2, torch.zeros(10, 10, dtype=torch.bool)))
    every_one_its_own = same_label(torch.arange(5).repeat(2))
    assert torch.equal(plain, nt_xent(z, pairs, 0.2, every_one_its_own))


def test_removal_never_raises_a_loss_which_stays_above_zero():
    for seed in range(5):
        z, pairs, mask = views(6, 3, seed), two_views(6), some_mask(12, seed)
        plain, fewer = nt_xent(z, pairs, 0.1), nt_xent(z, pairs, 0.1, mask)
        assert (fewer <= plain + 1e-12).all()
        assert (fewer < plain).any()
        assert (fewer >= -1e-12).all()


def test_supcon_is_the_sum_by_hand_and_nt_xent_for_unique_labels():
    z, labels = views(), torch.tensor([0, 1, 0, 2, 1]).repeat(2)
    positives = [[p for p in range(10) if p != i and labels[p] == labels[i]] for i in range(10)]
    assert torch.allclose(supcon(z, labels, 0.4), by_hand(z, positives, [[]] * 10, 0.4), atol=1e-12)
    unique = torch.arange(5).repeat(2)
    assert torch.allclose(supcon(z, unique, 0.4), nt_xent(z, two_views(5), 0.4), atol=1e-12)
    same = torch.ones(10, 3)
    assert torch.allclose(supcon(same, torch.zeros(10, dtype=torch.long), 0.4), torch.tensor(math.log(9)))


def test_attraction_is_the_sum_by_hand_and_supcon_for_what_an_oracle_knows():
    z, pairs, mask = views(), two_views(5), some_mask(10)
    positives = [sorted({int(pairs[i]), *(a for a in range(10) if mask[i, a] and a != i)}) for i in range(10)]
    assert torch.allclose(attraction(z, pairs, 0.4, mask), by_hand(z, positives, [[]] * 10, 0.4), atol=1e-12)
    labels = torch.tensor([0, 1, 0, 2, 1]).repeat(2)
    assert torch.allclose(attraction(z, pairs, 0.4, same_label(labels)), supcon(z, labels, 0.4), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_are_safe_in_half_precision(dtype):
    z, pairs = views().to(dtype).requires_grad_(True), two_views(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z, pairs, 0.01, torch.ones(10, 10, dtype=torch.bool))
        assert loss.dtype == torch.float32
        assert torch.isfinite(nt_xent(z, pairs, 0.01, some_mask(10))).all()
    nt_xent(z, pairs, 0.01, some_mask(10)).sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert loss.abs().max() < 1e-4


def test_the_length_of_vectors_does_not_matter():
    z, pairs = views(), two_views(5)
    assert torch.allclose(nt_xent(7 * z, pairs, 0.5), nt_xent(z, pairs, 0.5), atol=1e-12)


def test_bad_input_is_refused():
    z, pairs = views(), two_views(5)
    with pytest.raises(BadInput, match="two views"):
        nt_xent(z[:9], pairs[:9], 0.5)
    with pytest.raises(BadInput, match="temperature"):
        nt_xent(z, pairs, 0.0)
    with pytest.raises(BadInput, match="pairs"):
        nt_xent(z, pairs[:4], 0.5)
    with pytest.raises(BadInput, match="its own pair"):
        nt_xent(z, torch.arange(10), 0.5)
    with pytest.raises(BadInput, match="drop_mask"):
        nt_xent(z, pairs, 0.5, torch.ones(10, 9, dtype=torch.bool))
    with pytest.raises(BadInput, match="false_negatives"):
        attraction(z, pairs, 0.5, torch.ones(10, 10))
    with pytest.raises(BadInput, match="occurs once"):
        supcon(z, torch.arange(10), 0.5)
    with pytest.raises(BadInput, match="one label for each"):
        supcon(z, torch.arange(9), 0.5)
