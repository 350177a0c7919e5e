import pytest
import torch
from torch import nn

from withstand.errors import BadInput
from withstand.models.layers import matched_masks
from withstand.random import Rows

timm_layers = pytest.importorskip("timm.layers")
depth = pytest.importorskip("torchvision.ops").StochasticDepth


def network():
    return nn.Sequential(
        nn.Dropout2d(0.5), timm_layers.DropPath(0.3), nn.Dropout(0.2), depth(0.3, "row"), nn.Dropout(0.2)
    )


def test_every_pass_of_an_example_has_the_same_masks_in_any_batch():
    model, rows = network(), Rows.count(3, 16)
    x = torch.rand(16, 8, 4, 4) + 0.1
    state = torch.get_rng_state()
    with matched_masks(model, rows):
        first = model(x)
        assert torch.equal(model(x), first)
        assert torch.equal(model(torch.cat([x, 2 * x])), torch.cat([first, 2 * first]))
    take = torch.tensor([5, 2, 11])
    with matched_masks(model, rows.take(take)):
        assert torch.equal(model(x[take]), first[take])
    assert torch.equal(torch.get_rng_state(), state)
    for other, step in ((rows, 1), (Rows.count(4, 16), 0)):
        with matched_masks(model, other, step):
            assert not torch.equal(model(x), first)


@pytest.mark.parametrize(
    ("layer", "rate", "fixed", "value"),
    [
        (nn.Dropout(0.3), 0.3, (), 1 / 0.7),
        (nn.Dropout1d(0.4), 0.4, (2, 3), 1 / 0.6),
        (nn.Dropout2d(0.4), 0.4, (2, 3), 1 / 0.6),
        (depth(0.4, "row"), 0.4, (1, 2, 3), 1 / 0.6),
        (timm_layers.DropPath(0.4), 0.4, (1, 2, 3), 1 / 0.6),
        (timm_layers.DropPath(0.4, scale_by_keep=False), 0.4, (1, 2, 3), 1.0),
        (nn.Dropout(0.0), 0.0, (), 1.0),
        (nn.Dropout(1.0), 1.0, (), 1.0),
    ],
)
def test_masks_have_the_rate_the_shape_and_the_scale_of_the_layer(layer, rate, fixed, value):
    with matched_masks(layer, Rows.count(0, 2000)):
        out = layer(torch.ones(2000, 3, 2, 2))
    assert ((out == 0) | torch.isclose(out, torch.tensor(value))).all()
    assert (out == 0).float().mean().item() == pytest.approx(rate, abs=0.04)
    if fixed:
        assert (out == out.amax(fixed, keepdim=True)).all()
    elif 0 < rate < 1:
        assert (out != out[:, :, :1, :1]).any()


def test_two_layers_of_one_model_differ_and_eval_mode_drops_nothing():
    model = nn.ModuleList([nn.Dropout(0.5), nn.Dropout(0.5)])
    x = torch.ones(8, 20)
    with matched_masks(model, Rows.count(0, 8)):
        assert not torch.equal(model[0](x), model[1](x))
        assert torch.equal(model.eval()[0](x), x)


def test_layers_are_given_back_with_exceptions_and_after_nesting():
    model = nn.Dropout(0.5)
    x = torch.ones(4, 50)
    with matched_masks(model, Rows.count(0, 4)):
        outer = model(x)
        with matched_masks(model, Rows.count(1, 4)):
            assert not torch.equal(model(x), outer)
        assert torch.equal(model(x), outer)
    with pytest.raises(BadInput, match="3 for a batch of 4"), matched_masks(model, Rows.count(0, 3)):
        model(x)
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.1), depth(0.1, "batch"), nn.MultiheadAttention(4, 2, 0.1)])
def test_layers_that_cannot_be_matched_are_named(layer):
    with (
        pytest.raises(BadInput, match=rf"0 \({type(layer).__name__}\)"),
        matched_masks(nn.Sequential(layer), Rows.count(0, 1)),
    ):
        pass


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.0), depth(0.0, "batch")])
def test_what_drops_nothing_needs_no_match(layer):
    with matched_masks(layer, Rows.count(0, 4)):
        assert torch.equal(layer(torch.ones(4, 2)), torch.ones(4, 2))


def test_the_dropout_inside_fused_attention_is_refused():
    """It is a rate that a function is given; the layer that holds it never runs."""
    attention = pytest.importorskip("timm.models.vision_transformer").Attention
    model = attention(8, num_heads=2, attn_drop=0.1)
    model.fused_attn = True
    with pytest.raises(BadInput, match="Attention"), matched_masks(nn.Sequential(model), Rows.count(0, 4)):
        pass
    model.fused_attn = False
    x = torch.rand(4, 3, 8)
    with matched_masks(model, Rows.count(0, 4)):
        assert torch.equal(model(x), model(x))
