import numpy as np
import pytest
import torch
from torch import nn

from withstand.errors import BadInput
from withstand.metrics import quantile_interval
from withstand.models import as_target
from withstand.protocols import Space
from withstand.registry import parse


@pytest.fixture
def binary():
    """Two classes: the distance to the other one is the margin over the dual norm of the weights' difference."""
    g = torch.Generator().manual_seed(1)
    layer = nn.Linear(64, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 64, generator=g) / 8)
        layer.bias.zero_()
    return as_target(nn.Sequential(nn.Flatten(), layer), "binary", Space((1, 8, 8), (0.0, 1.0), 2))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_distances_to_a_plane_are_found(run, binary, arrays, norm, dual):
    x = 0.5 + 0.05 * torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    y = torch.randint(0, 2, (30,), generator=torch.Generator().manual_seed(3))
    done = run(f"minimum_distance({norm}(), attack=fab_t())", binary, arrays(x, y, classes=("a", "b")))
    w = binary.model[1].weight.detach()
    out = binary.model(x).detach()
    rows = torch.arange(30)
    exact = ((out[rows, y] - out[rows, 1 - y]) / (w[0] - w[1]).norm(p=dual)).clamp_min(0)
    assert 5 < int((exact == 0).sum()) < 25  # wrong from the start
    found = np.array([r.value for r in sorted(done.rows, key=lambda r: r.id)])
    assert np.allclose(found, exact, rtol=1e-2, atol=1e-6)  # FAB oversteps every projection by 5 %
    assert (found >= exact.numpy() - 1e-9).all()
    median = done.metric("median_distance", threat=norm)
    assert (median.value, median.low, median.high) == pytest.approx(quantile_interval(found))
    assert median.interval == "exact"
    assert done.metric("distance_quantile", share=0.9).value == pytest.approx(quantile_interval(found, 0.9)[0])


def test_the_figure_is_the_share_of_examples_within_each_distance(run, plain, digits, arrays):
    done = run("minimum_distance(l2(), attack=deepfool())", plain, arrays(digits.x[:40], digits.y[:40]))
    distance = np.array([np.inf if r.value is None else r.value for r in done.rows])
    data = done.findings.figures[0].data
    assert data["x"][0] == 0
    assert data["series"][0]["y"] == pytest.approx([(distance <= d).mean() for d in data["x"]])


def test_a_search_that_finds_nothing_is_said_so_and_gives_no_median(run, arrays, digits):
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.0])

    data = arrays(digits.x[:9], torch.tensor([0] * 6 + [1] * 3), classes=("a", "b", "c"))
    done = run("minimum_distance(linf(), attack=fab_t(steps=3))", as_target(Constant()), data)
    assert {m.name for m in done.findings.metrics} == {"distance_quantile", "distances_found"}
    assert done.metric("distances_found").value == pytest.approx(1 / 3)
    assert done.metric("distance_quantile", share=0.1).value == 0
    assert [f.level for f in done.findings.flags] == ["warn"]
    assert "6 of 9" in done.findings.flags[0].explanation


@pytest.mark.parametrize(
    "text", ["minimum_distance(l2(0.5))", "minimum_distance(attack=pgd())", "minimum_distance(quantiles=(0.0,))"]
)
def test_settings_that_cannot_work_are_refused(text):
    with pytest.raises(BadInput):
        parse(text, "check")
