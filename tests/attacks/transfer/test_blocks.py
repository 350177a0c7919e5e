"""Shuffled and turned blocks, random normalisation, and the worst neighbour, against their formulas written out."""

import math

import pytest
import torch
from torch import Tensor

import withstand as ws
from withstand.attacks.transfer.blocks import BlockShuffle, RandomNormalisation
from withstand.errors import BadInput
from withstand.random import Rows

from .naive import ascend, gradient

A = ws.attacks
EPS = 0.1


def run(attack, net, points):
    return attack.run(net, *points, seed=3)


def mi(**changes):
    return A.MI(ws.Linf(EPS), steps=5, **changes)


@pytest.mark.parametrize(
    "view",
    [
        A.BlockShuffle(parts=1, angle=0.0, copies=2),
        A.RandomNormalisation(spread=0.0, copies=2),
        A.WorstNeighbour(radius=0.0),
        A.WorstNeighbour(after=5),
    ],
)
def test_without_its_effect_each_view_leaves_momentum_alone(view, net, points):
    plain, reduced = run(mi(), net, points).x_adv, run(mi(views=(view,)), net, points).x_adv
    assert torch.allclose(plain, reduced, atol=1e-9)
    assert not torch.equal(plain, points[0])


def strips(cuts: Tensor, side: int) -> list[int]:
    lengths = [int((c / cuts.sum() * side).round()) for c in cuts]
    lengths[lengths.index(max(lengths))] += side - sum(lengths)
    return lengths


def shuffled(image: Tensor, draws: tuple[Tensor, Tensor, Tensor], n: int) -> Tensor:
    """One image [C, H, W] put together block by block, each turned by bilinear reading within it."""
    by_rows, by_columns, angles = draws
    height, width = image.shape[1:]
    tall = strips(by_rows[0], height)
    out_rows = []
    for k in by_rows[1].argsort().tolist():
        top = sum(tall[:k])
        strip = image[:, top : top + tall[k]]
        wide = strips(by_columns[0, k], width)
        pieces = []
        for j in by_columns[1, k].argsort().tolist():
            left = sum(wide[:j])
            pieces.append(turned(strip[:, :, left : left + wide[j]], float(angles[k * n + j])))
        out_rows.append(torch.cat(pieces, 2))
    return torch.cat(out_rows, 1)


def turned(block: Tensor, degrees: float) -> Tensor:
    made = torch.zeros_like(block)
    height, width = block.shape[1:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for i in range(height):
        for j in range(width):
            dy, dx = i - (height - 1) / 2, j - (width - 1) / 2
            y, x = cos * dy - sin * dx, sin * dy + cos * dx
            if abs(y) > height / 2 or abs(x) > width / 2:
                continue
            y = min(max(y + (height - 1) / 2, 0), height - 1)
            x = min(max(x + (width - 1) / 2, 0), width - 1)
            top, left = min(int(y), height - 1), min(int(x), width - 1)
            low, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = y - top, x - left
            made[:, i, j] = (1 - a) * ((1 - b) * block[:, top, left] + b * block[:, top, right]) + a * (
                (1 - b) * block[:, low, left] + b * block[:, low, right]
            )
    return made


@pytest.mark.parametrize(("parts", "angle"), [(1, 24.0), (2, 0.0), (3, 24.0)])
def test_blocks_are_cut_shuffled_and_turned(parts, angle):
    rows = Rows.count(4, 5)
    x = rows.uniform((2, 9, 8), "x", dtype=torch.float64)
    view = BlockShuffle(parts, angle)
    found = view.change(x, rows, 7)
    by_rows = rows.uniform((2, parts), "block rows", 7, dtype=torch.float64)
    by_columns = rows.uniform((2, parts, parts), "block columns", 7, dtype=torch.float64)
    angles = rows.uniform((parts * parts,), "block angles", 7, -angle, angle, torch.float64)
    for i in range(5):
        wanted = shuffled(x[i], (by_rows[i], by_columns[i], angles[i]), parts)
        assert torch.allclose(found[i], wanted, atol=1e-9)
    if angle == 0:
        assert torch.allclose(found.flatten(2).sort(2).values, x.flatten(2).sort(2).values, atol=1e-9)
        assert not torch.allclose(found, x)


def test_the_mean_gradient_goes_back_through_the_blocks(net, points):
    x, y = points
    view = BlockShuffle(copies=3)
    rows = Rows.count(2, len(x))
    found, _ = view(lambda z, r, s: (gradient(net, z, y), torch.zeros(len(z))))(x, rows, 4)
    point = x.clone().requires_grad_(True)
    loss = sum(
        torch.nn.functional.cross_entropy(net(view.change(point, rows, 12 + i)), y, reduction="sum") for i in range(3)
    )
    assert torch.allclose(found, torch.autograd.grad(loss / 3, point)[0], atol=1e-10)


def test_brightness_and_contrast_are_drawn(net, points):
    x, y = points
    rows = Rows.count(2, len(x))
    found, _ = RandomNormalisation(copies=2)(lambda z, r, s: (gradient(net, z, y), torch.zeros(len(z))))(x, rows, 3)
    point = x.clone().requires_grad_(True)
    loss = torch.zeros((), dtype=x.dtype)
    for i in range(2):
        drawn = 0.08 * rows.normal((2,), "normalisation", 6 + i, torch.float64)
        m, s = (0.5 + drawn[:, 0]).view(-1, 1, 1, 1), (0.75 + drawn[:, 1]).view(-1, 1, 1, 1)
        shown = 0.5 + 0.75 * (point - m) / s
        loss = loss + torch.nn.functional.cross_entropy(net(shown), y, reduction="sum") / 2
    assert torch.allclose(found, torch.autograd.grad(loss, point)[0], atol=1e-10)


def test_the_worst_neighbour_is_sought_downhill_from_the_late_start_on(net, points):
    x, y = points
    # the engine's own draws, whatever they are: seed 3 of this attack
    rows = Rows(ws.random.derive(3, "mi"), torch.arange(len(x)))

    def look(z, t, m):
        if t < 2:
            return gradient(net, z, y)
        n = 1.5 * EPS * rows.uniform(tuple(x.shape[1:]), "worst neighbour", t, -1.0, 1.0, x.dtype)
        for _ in range(3):
            n = (n - 0.25 * EPS * gradient(net, z + n, y).sign()).clamp(-1.5 * EPS, 1.5 * EPS)
        return gradient(net, z + n, y)

    ours = run(mi(views=(A.WorstNeighbour(1.5, 3, 0.25, 2),)), net, points).x_adv
    assert torch.allclose(ours, ascend(x, EPS, 5, look))


def test_the_worst_neighbour_is_worse(net, points):
    """What the view looks at has a lower loss than where the search stands."""
    x, y = points
    seen: list[Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(z.detach())
            return net(z)

    run(A.MI(ws.Linf(EPS), steps=1, views=(A.WorstNeighbour(steps=10, step=0.2),)), Spy(), points)
    last = seen[-1] if len(seen[-1]) == len(x) else seen[-2]
    before, after = (torch.nn.functional.cross_entropy(net(z), y) for z in (x, last))
    assert float(after.detach()) < float(before.detach())


def test_settings_that_make_no_sense_are_refused():
    for make in (
        lambda: A.BlockShuffle(parts=0),
        lambda: A.BlockShuffle(copies=0),
        lambda: A.BlockShuffle(angle=-1.0),
        lambda: A.RandomNormalisation(spread=0.5),
        lambda: A.RandomNormalisation(copies=0),
        lambda: A.WorstNeighbour(radius=-1.0),
        lambda: A.WorstNeighbour(steps=0),
        lambda: A.WorstNeighbour(step=0.0),
        lambda: A.WorstNeighbour(after=-1),
    ):
        with pytest.raises(BadInput, match="allowed"):
            make()
    with pytest.raises(BadInput, match="parts: got 9"):
        BlockShuffle(9).change(torch.rand(1, 1, 8, 8), Rows.count(0, 1), 0)
    with pytest.raises(BadInput, match="images"):
        BlockShuffle().change(torch.rand(1, 8), Rows.count(0, 1), 0)
