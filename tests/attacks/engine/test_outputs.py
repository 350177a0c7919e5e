import pytest
import torch
from torch import nn

from withstand.attacks.engine.outputs import see


@pytest.mark.parametrize("name", ["0", ">1"])
def test_an_activation_in_place_does_not_write_into_what_an_objective_reads(name):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(5, 1, 6, 6)
    seen = see(model, x, (name,))
    assert torch.equal(seen.features[name], model[0](x))
    assert seen.features[name].min() < 0
    assert torch.equal(seen.logits, model(x))
    (g,) = torch.autograd.grad(seen.logits.sum(), seen.features[name])
    assert torch.equal(g == 0, seen.features[name] <= 0)
