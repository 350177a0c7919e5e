import pytest
import torch
import torch.nn.functional as F
from torch import nn

from withstand.errors import BadInput
from withstand.models import Normalised
from withstand.models.taps import Tap, blocks, last_map, penultimate, see, stages, vectors
from withstand.models.target import Logits
from withstand.models.zoo.table import find


class Odd(nn.Module):
    """A branch that is never taken, a linear layer before the convolutions, and a functional pool."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 4, 3)
        self.act = nn.ReLU()
        self.fc = nn.Linear(4, 3)
        self.after = nn.Identity()

    def forward(self, x):
        h = F.adaptive_avg_pool2d(self.act(self.conv(x)), 1)
        return self.after(self.fc(h.flatten(1)))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


X = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_the_pooled_features_are_what_the_last_linear_layer_reads():
    model = Odd()
    assert penultimate(model, X) == Tap("fc", "input")
    _, h = see(model, X, penultimate(model, X))
    assert torch.equal(h, model.act(model.conv(X)).mean((2, 3)))
    assert torch.equal(vectors(model.conv(X)), model.conv(X).mean((2, 3)))
    assert vectors(torch.ones(2, 7, 5)).shape == (2, 5)


def test_the_last_map_comes_before_the_pool():
    assert last_map(net(), X) == Tap("2")
    assert last_map(Odd(), X) == Tap("act")
    assert last_map(nn.Sequential(Normalised(net(), (0.5,), (0.5,))), X) == Tap("0.model.2")
    model = net()
    _, z = see(model, X, last_map(model, X))
    assert torch.equal(z, model[:3](X))


def test_what_is_read_has_its_graph_and_nothing_stays():
    model = net()
    logits, z = see(model, X, Tap("2"))
    assert torch.equal(model[3:](z), logits)
    (g,) = torch.autograd.grad(logits.sum(), z, retain_graph=True)
    assert g.abs().sum() > 0
    assert torch.autograd.grad(z.sum(), model[0].weight)[0].abs().sum() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("side", ["output", "input"])
def test_an_activation_in_place_does_not_write_into_what_is_read(side):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    logits, h = see(model, X, Tap("0") if side == "output" else Tap("1", "input"))
    assert torch.equal(h, model[0](X))
    assert h.min() < 0
    assert torch.equal(logits, model(X))
    (g,) = torch.autograd.grad(logits.sum(), h)  # the pass leads through what was read
    assert torch.equal(g == 0, h <= 0)


def test_looking_for_a_place_leaves_the_model_as_it_was():
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    last_map(model, X), penultimate(model, X), stages(model, X, 1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cifar_resnet20", ("layer1", "layer2")),
        ("wrn16_1", ("block1", "block2")),
        ("digits_cnn", ("1", "3")),
        ("lenet", ("conv1", "conv2")),
    ],
)
def test_stages_end_where_the_maps_shrink_or_a_block_of_convolutions_does(name, found):
    entry = find(name)
    model, x = entry.build(), torch.rand(2, *entry.shape)
    assert stages(model, x, 2) == found
    assert stages(nn.Sequential(model), x, 2) == tuple(f"0.{n}" for n in found)


def test_a_name_overrides_the_search():
    model = net()
    assert penultimate(model, X, "1") == last_map(model, X, "1") == Tap("1")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: penultimate(m, X, "fcc"), "submodule of the model"),
        (lambda m: last_map(m, X, "after"), "map"),
        (lambda m: last_map(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), X), "features='layer4'"),
        (lambda m: penultimate(nn.Flatten(), X), "linear layer"),
        (lambda m: see(m, X, Tap("unused")), "runs in every forward pass"),
        (lambda m: stages(m, X, 3), "3 stages"),
    ],
)
def test_places_that_do_not_exist_are_refused(ask, said):
    with pytest.raises(BadInput, match=said):
        ask(Odd())


def test_tokens_are_no_map():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.split, self.block, self.fc = (
                nn.Conv2d(1, 4, 2, 2),
                nn.Identity(),
                nn.Linear(4, 4),
                nn.Linear(4, 3),
            )

        def forward(self, x):
            t = self.patch(x).flatten(2).mT
            return self.fc(self.block(self.split(t[:, None])[:, 0]).mean(1))

    with pytest.raises(BadInput, match="map"):
        last_map(Tokens(), X)


def test_a_convolution_may_make_the_logits():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert penultimate(model, X) == Tap("2", "input")
    assert last_map(model, X) == Tap("1")


def test_blocks_are_the_last_parts_with_weights_before_the_head_in_the_order_of_the_pass():
    assert blocks(net(), X) == ("0", "1")
    assert blocks(nn.Sequential(nn.Identity(), net()), X) == ("1.0", "1.1")  # wrappers are seen through
    assert blocks(net(), X, most=1) == ("1",)
    assert blocks(Odd(), X) == ("conv",)  # `unused` never runs, `fc` is the head
    assert blocks(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), X) == ()


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_blocks_of_timm_models(name):
    import timm

    settings = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=3, **settings)
    found = blocks(model, torch.rand(2, 3, 32, 32))
    expected = {"resnet10t": ("layer1", "layer2", "layer3", "layer4")}
    assert found == expected.get(name, ("patch_embed", "blocks", "norm"))


def test_layers_are_named_as_the_architecture_names_them_whatever_stands_around_it():
    wrapped, x = Logits(Normalised(net(), (0.5,), (0.5,))), torch.ones(2, 1, 8, 8)
    for find_tap in (penultimate, last_map):
        assert find_tap(wrapped, x, "0") == find_tap(wrapped, x, "model.model.0") == Tap("model.model.0")
        with pytest.raises(BadInput, match="submodule"):
            find_tap(wrapped, x, "nowhere")
