"""Each hashing loss against a slow loop over pairs and bits."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from withstand.attacks.hashing.centres import sign
from withstand.errors import BadInput
from withstand.random import Rows
from withstand.registry import parse
from withstand.representation.hashing.losses import CSQ, coordinate_descent, hash_centres

K, C = 8, 4
ROWS = Rows.count(3, 1)


class Held(nn.Module):
    """A bank of fixed outputs."""

    def __init__(self, n: int = 11, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.u = torch.tanh(torch.randn(n, K, generator=g))
        self.b = sign(self.u)
        self.y = (torch.rand(n, C, generator=g) < 0.4).float()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(7)
    return torch.tanh(torch.randn(5, K, generator=g)), (torch.rand(5, C, generator=g) < 0.5).float()


def pairs(u: Tensor, y: Tensor, bank: Any) -> list[tuple[float, float]]:
    """(u_i . U_j, s_ij) of all pairs, number by number."""
    return [
        (
            sum(a * b for a, b in zip(v.tolist(), w.tolist())),
            float(any(a and b for a, b in zip(p.tolist(), q.tolist()))),
        )
        for v, p in zip(u, y)
        for w, q in zip(bank.u, bank.y)
    ]


def softplus(t: float) -> float:
    return math.log1p(math.exp(-abs(t))) + max(t, 0.0)


def dph(u: Tensor, y: Tensor, bank: Any) -> float:
    found = [(t / K - (2 * s - 1)) ** 2 for t, s in pairs(u, y, bank)]
    return sum(found) / len(found)


def dpsh(u: Tensor, y: Tensor, bank: Any) -> float:
    found = [softplus(t / 2) - s * t / 2 for t, s in pairs(u, y, bank)]
    rest = [(v - (1 if v >= 0 else -1)) ** 2 for v in u.flatten().tolist()]
    return sum(found) / len(found) + 0.001 * sum(rest) / len(rest)


def hashnet(u: Tensor, y: Tensor, bank: Any) -> float:
    found = [(softplus(0.1 * t) - s * 0.1 * t, s) for t, s in pairs(u, y, bank)]
    ones, zeros = [v for v, s in found if s], [v for v, s in found if not s]
    total = len(found)
    return (sum(ones) * total / len(ones) + sum(zeros) * total / len(zeros)) / total


def dch(u: Tensor, y: Tensor, bank: Any) -> float:
    def distance(a: list[float], b: list[float]) -> float:
        norm = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        return (1 - min(sum(v * w for v, w in zip(a, b)) / norm, 0.99)) * K / 2

    rows, labels = u.tolist(), y.tolist()
    s = [[float(any(a and b for a, b in zip(p, q))) for q in labels] for p in labels]
    ones = sum(map(sum, s))
    total, terms = len(rows) ** 2, 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            d, w = distance(a, b), total / ones if s[i][j] else total / (total - ones)
            terms += w * (s[i][j] * math.log(d / 20) + math.log(1 + 20 / d))
    rest = [math.log(1 + distance([abs(v) for v in a], [1.0] * K) / 20) for a in rows]
    return terms / total + 0.1 * sum(rest) / len(rest)


@pytest.mark.parametrize("reference", [dph, dpsh, hashnet, dch])
def test_pairwise_losses_are_sums_over_pairs(reference: Any, batch: tuple[Tensor, Tensor]) -> None:
    (u, y), bank, loss = batch, Held(), parse(reference.__name__, "hashing_loss")
    own = loss.parts(K, C, ROWS)
    assert float(loss(u, y, bank, own)) == pytest.approx(reference(u, y, bank), rel=1e-5)


def test_csq_is_the_cross_entropy_of_bits(batch: tuple[Tensor, Tensor]) -> None:
    u, y = batch
    loss = CSQ(weight=0.5)
    own = loss.parts(K, C, ROWS)
    terms, rest = [], []
    for row, labels in zip(u.tolist(), y.tolist()):
        for k, v in enumerate(row):
            vote = sum(own.centres[c, k].item() for c in range(C) if labels[c])
            bit = own.divided[k].item() if vote == 0 else math.copysign(1, vote)
            p = (v + 1) / 2
            terms.append(-math.log(p) if bit > 0 else -math.log(1 - p))
            rest.append((abs(v) - 1) ** 2)
    assert float(loss(u, y, None, own)) == pytest.approx(
        sum(terms) / len(terms) + 0.5 * sum(rest) / len(rest), rel=1e-5
    )


def test_greedyhash_classifies_signs_and_passes_the_gradient_through(batch: tuple[Tensor, Tensor]) -> None:
    u, y = batch[0].clone().requires_grad_(True), torch.eye(C)[[0, 3, 1, 2, 0]]
    loss = parse("greedyhash(weight=0.0)", "hashing_loss")
    own = loss.parts(K, C, ROWS)
    loss(u, y, None, own).backward()
    code = sign(u.detach()).requires_grad_(True)
    value = torch.nn.functional.cross_entropy(code @ own.weight.T, y.argmax(1))
    value.backward()
    assert torch.allclose(u.grad, code.grad, atol=1e-7)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="first of several"):
        loss(u.detach(), torch.ones(5, C), None, own)


def test_dsdh_is_the_likelihood_and_a_fit_without_a_gradient(batch: tuple[Tensor, Tensor]) -> None:
    bank, y = Held(), batch[1]
    u = batch[0].clone().requires_grad_(True)
    loss, plain = parse("dsdh", "hashing_loss"), parse("dpsh(eta=0.0)", "hashing_loss")
    own = loss.parts(K, C, ROWS)
    loss.begin_epoch(bank, own)
    value = loss(u, y, bank, own)
    fit = (y - sign(u.detach()) @ own.W).square().mean() + own.W.square().mean()
    assert float(value) == pytest.approx(float(plain(u, y, bank, None) + fit), rel=1e-5)
    assert float(own.W.abs().sum()) > 0


def test_coordinate_descent_never_raises_its_cost_and_ends_where_no_bit_helps() -> None:
    held, (mu, nu, eta) = Held(n=9, seed=2), (1.0, 1.0, 0.3)

    def cost(b: Tensor, w: Tensor) -> float:
        return float(mu * (held.y - b @ w).square().sum() + nu * w.square().sum() + eta * (b - held.u).square().sum())

    before = [cost(*coordinate_descent(held.b, held.u, held.y, mu, nu, eta, n)) for n in range(1, 6)]
    assert all(b <= a + 1e-4 for a, b in pairwise(before))
    b, w = coordinate_descent(held.b, held.u, held.y, mu, nu, eta, 20)
    last = (b, w)
    for k in range(K):
        other = b.clone()
        other[0, k] *= -1
        assert cost(other, w) >= cost(*last) - 1e-4


def test_hadamard_centres_differ_in_half_of_the_bits() -> None:
    made = hash_centres(16, 16, ROWS)
    far = (16 - made @ made.T) / 2
    assert torch.equal(far, 8 * (1 - torch.eye(16)))


def test_other_numbers_of_bits_need_random_centres() -> None:
    with pytest.raises(BadInput, match="power of two"):
        CSQ().parts(12, 4, ROWS)
    with pytest.raises(BadInput, match="half the number of classes"):
        CSQ().parts(4, 9, ROWS)
    made = CSQ(random_centres=True).parts(12, 6, ROWS).centres
    assert made.shape == (6, 12)
    assert bool((made.sum(1) == 0).all())
    assert len(made.unique(dim=0)) == 6


def test_what_csq_draws_is_the_same_for_every_seed() -> None:
    for bits, classes in ((12, 6), (16, 40)):
        one, two = [CSQ(random_centres=True).parts(bits, classes, Rows.count(seed, 1)) for seed in (1, 2)]
        assert isinstance(one.centres, Tensor)
        assert isinstance(two.centres, Tensor)
        assert isinstance(one.divided, Tensor)
        assert isinstance(two.divided, Tensor)
        assert torch.equal(one.centres, two.centres)
        assert torch.equal(one.divided, two.divided)
        assert set(one.divided.tolist()) == {-1, 1}
        assert len(one.centres.unique(dim=0)) == classes


@pytest.mark.parametrize(
    "text", ["dpsh(eta=-1.0)", "hashnet(alpha=0.0)", "dch(gamma=0.0)", "csq(weight=-1.0)", "dsdh(rounds=0)"]
)
def test_settings_that_make_no_loss_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text, "hashing_loss")
