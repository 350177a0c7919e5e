"""SimBA and NES on lists against loops over one image at a time."""

import pytest
import torch

import withstand as ws
from withstand.attacks.retrieval.relevance import overlap
from withstand.errors import BadInput
from withstand.models.retrieval import ImageIndex
from withstand.random import Rows, derive

A = ws.attacks
EPS, BUDGET = 0.3, 30


@pytest.fixture(scope="module")
def images():
    return Rows.count(0, 40).uniform((1, 5, 4), "x", dtype=torch.float64)


@pytest.fixture(scope="module")
def engine(images):
    directions = Rows.count(1, 20).normal((6,), "w", dtype=torch.float64)

    class Embedding(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(x.flatten(1).to(directions) @ directions)

    return ImageIndex(Embedding(), images[8:], k=4)


class Loop:
    """One image, its lists and what they cost."""

    def __init__(self, engine, x):
        self.engine, self.x, self.asked, self.done = engine, x, 0, False
        self.clean = torch.tensor(engine(x[None]))
        self.asked = 1

    def open(self, need=1):
        return not self.done and self.asked + need <= BUDGET

    def ask(self, z):
        """Minus the relevance at z."""
        self.asked += 1
        now = torch.tensor(self.engine(z[None]))
        self.done |= not set(now[0].tolist()) & set(self.clean[0].tolist())
        return -float(overlap(self.clean, now))

    def project(self, z):
        return z.clamp(self.x - EPS, self.x + EPS).clamp(0, 1)


def directions(basis):
    if basis == "pixel":
        return list(torch.eye(20, dtype=torch.float64).reshape(20, 1, 5, 4))
    found = []
    for a in range(3):
        for b in range(2):
            i, j = torch.arange(5, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
            wave = torch.cos(torch.pi * (i + 0.5) * a / 5) * torch.cos(torch.pi * (j + 0.5) * b / 4)
            found.append((wave / wave.abs().max())[None])
    return found


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_keeps_the_first_sign_that_lowers_the_relevance(basis, engine, images):
    x = images[:8]
    found = A.SimBALists(ws.Linf(EPS), queries=BUDGET, basis=basis, step=0.7).run(engine, x, seed=3)
    rows = Rows(derive(3, "simba_lists"), torch.arange(8))
    ways = directions(basis)
    orders = rows.uniform((len(ways),), "simba", dtype=torch.float64).argsort(1).tolist()
    for i, order in enumerate(orders):
        loop = Loop(engine, x[i])
        z, value, turn = x[i], -float(overlap(loop.clean, loop.clean)), 0
        while loop.open():
            u = ways[order[turn % len(ways)]]
            for sign in (1, -1):
                if loop.open():
                    new = loop.project(z + sign * 0.7 * EPS * u)
                    if (now := loop.ask(new)) > value:
                        z, value = new, now
                        break
            turn += 1
        assert (int(found.forwards[i]), bool(found.success[i])) == (loop.asked, loop.done)
        assert torch.allclose(found.x_adv[i], z)
    assert 0 < int(found.success.sum()) < 8


def test_nes_steps_along_the_mean_of_opposite_pairs(engine, images):
    x, pairs, length = images[:8], 2, 0.5 * EPS * 20**0.5
    found = A.NESLists(ws.Linf(EPS), queries=BUDGET, pairs=pairs, sigma=0.5, step=0.3).run(engine, x, seed=3)
    for i in range(8):
        rows, loop = Rows(derive(3, "nes_lists"), torch.tensor([i])), Loop(engine, x[i])
        z, turn, hits = x[i], 0, []
        while loop.open():
            g = torch.zeros_like(z)
            for b in range(pairs):
                u = rows.normal((1, 5, 4), "nes", turn * (pairs + 1) + b, torch.float64)[0]
                u = u / u.norm()
                if loop.open(3):
                    ends = [loop.project(z + s * length * u) for s in (1, -1)]
                    forth, back = (loop.ask(end) for end in ends)
                    g = g + (forth - back) / length * u
            if not bool((g != 0).any()):
                g = rows.normal((1, 5, 4), "nes", turn * (pairs + 1) + pairs, torch.float64)[0]
            if loop.open():
                z = loop.project(z + 0.3 * EPS * g.sign())
                hits.append(loop.ask(z))
            turn += 1
        assert (int(found.forwards[i]), bool(found.success[i])) == (loop.asked, loop.done)
    assert 0 < int(found.success.sum()) < 8


@pytest.mark.parametrize("attack", ["simba_lists", "nes_lists"])
def test_each_row_stays_itself_in_any_block_and_every_success_is_real(attack, engine, images):
    x = images[:8]
    made = ws.registry.parse(f"{attack}(linf({EPS}), queries={BUDGET})", "attack")
    whole, parts = made.run(engine, x, seed=2), made.run(engine, x, seed=2, block=3)
    assert torch.equal(whole.x_adv, parts.x_adv)
    assert int(whole.forwards.max()) <= BUDGET
    apart = [not set(a) & set(b) for a, b in zip(engine(x), engine(whole.x_adv))]
    assert all(a or not s for a, s in zip(apart, whole.success.tolist()))


def test_bad_settings():
    with pytest.raises(BadInput, match="queries"):
        A.SimBALists(queries=1)
    with pytest.raises(BadInput, match="pairs"):
        A.NESLists(pairs=0)
    with pytest.raises(BadInput, match="returns no lists"):
        A.NESLists()(torch.nn.Flatten(), torch.rand(2, 1, 4, 4))
