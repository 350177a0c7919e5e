import pytest
import torch
from torch import nn

from withstand.errors import BadInput
from withstand.models import frozen


class Counter(nn.Module):
    """Replaces a buffer and changes another at every pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.calls = self.calls + 1
        self.seen += x.detach().mean(0)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), Counter())
    made.train()
    made[1].eval()
    made[0].bias.requires_grad_(False)
    return made


def snapshot(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        {k: v.clone() for k, v in model.state_dict().items()},
        [id(b) for b in model.buffers()],
    )


def same(a, b):
    return a[0] == b[0] and a[1] == b[1] and a[3] == b[3] and all(torch.equal(a[2][k], b[2][k]) for k in a[2])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_everything_is_restored(model, mode):
    before = snapshot(model)
    with frozen(model, mode) as inside:
        assert inside is model
        assert all(m.training == (mode == "train") for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        model(torch.randn(8, 3))
    assert same(before, snapshot(model))


def test_everything_is_restored_after_an_exception(model):
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="multiplied"), frozen(model, "train"):
        nn.Sequential(model, nn.Linear(5, 5))(torch.randn(8, 3))
    assert same(before, snapshot(model))


def test_the_input_still_gets_its_gradient(model):
    x = torch.randn(4, 3, requires_grad=True)
    with frozen(model):
        (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert gradient.abs().sum() > 0


def test_modules_that_act_in_train_are_told(model):
    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    made = Merging(3, 3).train()
    with frozen(made):
        assert made.merged
    assert not made.merged


def test_an_unknown_mode_is_refused(model):
    with pytest.raises(BadInput, match='"eval" or "train"'), frozen(model, "test"):  # type: ignore[arg-type]
        pass
