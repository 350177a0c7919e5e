"""Agreement with torchattacks where both follow the papers and nothing is drawn."""

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.random import Rows

A = ws.attacks
EPS = 8 / 255


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
        )
    x = Rows.count(0, 20).uniform((3, 16, 16), "x")
    return net.eval(), x, torch.arange(20) % 10


@pytest.mark.peers
@pytest.mark.parametrize(
    ("theirs", "settings", "ours"),
    [
        ("MIFGSM", {"decay": 1.0}, A.MI),
        ("MIFGSM", {"decay": 0.5}, lambda t, **k: A.MI(t, shapings=(A.Momentum(0.5),), **k)),
        ("NIFGSM", {"decay": 1.0}, A.NI),
        ("SINIFGSM", {"decay": 1.0, "m": 5}, lambda t, **k: A.MI(t, views=(A.Nesterov(), A.Scale()), **k)),
        ("DIFGSM", {"decay": 1.0, "diversity_prob": 0.0}, lambda t, **k: A.DI(t, views=(A.Diversity(0.0),), **k)),
        (
            "TIFGSM",
            {"decay": 1.0, "diversity_prob": 0.0, "len_kernel": 7},
            lambda t, **k: A.TI(t, shapings=(A.Translation(size=7), A.Momentum()), **k),
        ),
    ],
    ids=["mi", "mi half", "ni", "si_ni", "di", "ti"],
)
def test_torchattacks_ends_at_the_same_points(theirs, settings, ours, case):
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = case
    expected = getattr(torchattacks, theirs)(net, eps=EPS, alpha=EPS / 10, steps=10, **settings)(x, y)
    found = ours(ws.Linf(EPS), steps=10)(net, x, y)
    same = ((found - expected).abs() < 1e-5).double().mean()
    assert float(same) > 0.9995, "but for gradients whose sign rounding decides"
    assert (found - x).abs().max() > EPS / 2
