"""The last check of a point, which works on a few rows at a time."""

import pytest
import torch

import withstand as ws
from withstand.attacks.engine.run import _pieces, seal
from withstand.random import Rows
from withstand.threats import L1, L2, Linf, Masked

N, SHAPE = 23, (3, 40, 41)  # three rows in a piece, two in the last one
MASK = Rows.count(5, N).signs(SHAPE, "mask") > 0


def radii(low, high):
    return torch.linspace(low, high, N)


@pytest.mark.parametrize(
    "threat",
    [
        Linf(0.03),
        Linf(radii(0.01, 0.05)),
        L2(2.0),
        L2(radii(0.5, 3)),
        L1(radii(20, 60)),
        Masked(Linf(radii(0.01, 0.05)), MASK),
    ],
    ids=["linf", "linf each", "l2", "l2 each", "l1 each", "masked"],
)
def test_a_hair_outside_is_pulled_inside_in_every_piece_with_the_radius_of_its_row(threat):
    x = Rows.count(0, N).uniform(SHAPE, "x", low=0.2, high=0.8)
    change = Rows.count(1, N).uniform(SHAPE, "z", low=-1, high=1)
    change = change * MASK if isinstance(threat, Masked) else change
    length = threat.distance(x.double(), (x + change).double())
    scale = threat.radius(x).double() * (1 + 1e-5) / length
    scale[::2] *= 0.5
    z = (x.double() + change * scale[:, None, None, None]).to(x.dtype)
    before = threat.distance(x.double(), z.double())
    assert (before > threat.radius(x).double())[1::2].all()
    sealed, distance = seal(z, x, threat, (0.0, 1.0))
    assert (distance <= threat.radius(x).double() * (1 + 4e-6)).all()  # what rounding leaves
    assert torch.equal(distance, threat.distance(x.double(), sealed.double()))
    assert torch.equal(sealed[::2], z[::2])
    assert float((sealed - z).abs().max()) < 1e-5
    assert (distance[1::2] > 0.999 * threat.radius(x).double()[1::2]).all()
    assert len(list(_pieces(threat, x, z))) == 8


def test_points_far_outside_stay_for_the_caller_to_refuse_and_the_box_binds():
    x = torch.full((N, *SHAPE), 0.5)
    z = x.clone()
    z[7] = 1.5
    sealed, distance = seal(z, x, Linf(0.1), (0.0, 1.0))
    assert float(sealed[7].min()) == 1.0
    assert distance[7] == 0.5
    assert float(distance.sum()) == 0.5


def test_what_no_radius_bounds_is_measured_in_pieces_too():
    x = Rows.count(0, N).uniform(SHAPE, "x")
    z = Rows.count(1, N).uniform(SHAPE, "x")
    assert torch.equal(seal(z, x, L2(), None)[1], (z.double() - x.double()).flatten(1).norm(dim=1))


def test_the_state_of_global_generators_is_kept_and_models_draw_the_same_in_every_run():
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] + 0.1 * torch.randn(len(x), 3)

    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = [ws.attacks.PGD(Linf(0.1), steps=3)(Noisy(), x, y, seed=s) for s in (0, 0)]
    assert torch.equal(*found)
    assert torch.equal(torch.get_rng_state(), before)
