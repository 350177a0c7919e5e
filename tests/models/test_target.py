from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from withstand.errors import BadInput
from withstand.models import Normalised, TorchTarget, as_target, logits_of
from withstand.protocols import Space, Target


class Returning(nn.Module):
    """Returns its linear layer's output through `shape`."""

    def __init__(self, shape=lambda z: z, k=4):
        super().__init__()
        self.fc, self.shape = nn.Linear(3, k), shape

    def forward(self, x):
        return self.shape(self.fc(x.flatten(2).mean(2)))


x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "logits aux")


@pytest.mark.parametrize(
    "shape",
    [
        lambda z: z,
        lambda z: {"logits": z, "features": z * 2},
        lambda z: {"out": z},
        lambda z: (z,),
        lambda z: (z, [z]),
        lambda z: (z, z.mean()),
        lambda z: [z.long(), z],
        lambda z: Pair(z, z * 2),
        lambda z: SimpleNamespace(logits=z),
    ],
)
def test_logits_are_found_in_what_the_model_returns(shape):
    model = Returning(shape)
    assert torch.equal(as_target(model)(x), model.fc(x.flatten(2).mean(2)))


@pytest.mark.parametrize(
    "shape",
    [
        lambda z: z[:, :, None],
        lambda z: z.argmax(1),
        lambda z: z.long(),
        lambda z: (z, z * 2),
        lambda z: {"a": z, "b": z},
        lambda z: {"logits": [1]},
        lambda z: "cat",
        lambda z: None,
        lambda z: [],
    ],
)
def test_outputs_that_no_adapter_understands_are_refused(shape):
    with pytest.raises(BadInput, match=r"the model returned .* allowed: float logits \[N, K\]"):
        as_target(Returning(shape))(x)


def test_the_class_count_decides_between_several_candidates():
    model = Returning(lambda z: (torch.cat([z, z], 1), z))
    assert torch.equal(as_target(model, space=Space(classes=4))(x), model(x)[1])
    assert torch.equal(logits_of(model(x), 8), model(x)[0])
    with pytest.raises(BadInput, match="tuple of a float32 tensor"):
        as_target(model, space=Space(classes=5))(x)


def test_declared_probabilities_become_log_probabilities():
    model = Returning(lambda z: z.softmax(1))
    target = TorchTarget(model, outputs="probabilities")
    assert torch.allclose(target(x), model.fc(x.flatten(2).mean(2)).log_softmax(1), atol=1e-6)
    certain = TorchTarget(Returning(lambda z: torch.eye(4)[z.argmax(1)]), outputs="probabilities")
    assert certain(x).isfinite().all()
    with pytest.raises(BadInput, match="outputs: got 'percent'"):
        TorchTarget(model, outputs="percent")  # type: ignore[arg-type]


def test_normalisation_lies_inside_the_model():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    seen = Normalised(nn.Identity(), mean, std)(x)
    naive = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(seen, naive)
    assert Normalised(nn.Identity(), mean, std)(x.double()).dtype == torch.float64
    assert Normalised(nn.Identity(), (0.5,), (0.5,))(x).max() <= 1
    series = Normalised(nn.Identity(), mean, std)(x[..., 0])
    assert torch.allclose(series, naive[..., 0])
    with pytest.raises(BadInput, match="1 channels"):
        Normalised(nn.Identity(), mean, std)(x[:, :1])


def test_the_state_dict_is_that_of_the_model_under_one_prefix():
    model = Returning()
    assert set(Normalised(model, (0.5,), (0.5,)).state_dict()) == {f"model.{k}" for k in model.state_dict()}


def test_a_module_becomes_a_target_and_a_target_stays_one():
    model = Returning().eval()
    target: Target = as_target(model, "mine", Space((3, 8, 8), classes=4))
    assert as_target(target) is target
    assert (target.name, target.task, target.space.classes) == ("mine", "classification", 4)
    assert target.access == {"gradients", "features", "scores", "decision"}
    assert as_target(model).name == "Returning"
    assert not target.module.training
    for wrong in ("resnet18", 3, None, lambda x: x):
        with pytest.raises(BadInput, match="a torch module or what load_model returns"):
            as_target(wrong)


def test_submodules_keep_the_names_that_the_model_gives_them():
    model = Returning()
    for made in (TorchTarget(model), TorchTarget(Normalised(model, (0.5,), (0.5,)))):
        assert made.submodule("fc") is model.fc
        with pytest.raises(BadInput, match="Did you mean fc"):
            made.submodule("fcc")


def test_the_fingerprint_follows_the_content():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = as_target(model).fingerprint()
    assert as_target(model, "other name").fingerprint() == first
    assert TorchTarget(model, source="def f(): ...").fingerprint() != first
    assert TorchTarget(Normalised(model, (0.5,), (0.5,))).fingerprint() != first
    assert (
        TorchTarget(Normalised(model, (0.5,), (0.5,))).fingerprint()
        != TorchTarget(Normalised(model, (0.4,), (0.5,))).fingerprint()
    )
    assert as_target(model.bfloat16()).fingerprint() != first
    model.float()
    model[2].running_mean[0] += 1e-3  # type: ignore[index, operator]
    assert as_target(model).fingerprint() != first


def test_addresses_in_the_text_of_a_module_do_not_change_the_fingerprint():
    class Odd(Returning):
        alive = []

        def extra_repr(self):
            self.alive.append(object())
            return repr(self.alive[-1])

    torch.manual_seed(0)
    model = Odd()
    assert repr(model) != repr(model)
    assert len({as_target(model).fingerprint() for _ in range(5)}) == 1
