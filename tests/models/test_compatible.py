import numpy as np
import pytest
import torch
from torch import nn

from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.models import TorchTarget, as_target, check_compatible
from withstand.protocols import Space

rng = np.random.default_rng(0)
DATA = from_arrays(rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6) % 3, "small", classes=10)


class Net(nn.Module):
    def __init__(self, after=lambda z: z, k=10, channels=3):
        super().__init__()
        self.conv, self.after = nn.Conv2d(channels, k, 3), after

    def forward(self, x):
        return self.after(self.conv(x).mean((2, 3)))


def test_what_fits_passes_and_says_what_it_found():
    model = nn.Sequential(Net(), nn.BatchNorm1d(10)).train()
    before = model[1].running_mean.clone()
    space = check_compatible(as_target(model), DATA)
    assert space == Space((3, 8, 8), (0.0, 1.0), 10)
    assert model.training
    assert torch.equal(model[1].running_mean, before)


BAD = {
    "channels": (Net(channels=1), Space((1, 8, 8)), "channels: the model takes 1, the data has 3 .*channels=1"),
    "channels found out": (Net(channels=1), None, r"the model fails on inputs \[4, 3, 8, 8\]: .*channels"),
    "size": (Net(), Space((3, 32, 32)), "size: the model takes 32x32, the data is 8x8 .*size=32"),
    "rank": (Net(), Space((3, 8)), r"rank: the model takes \[3, 8\], the data is \[3, 8, 8\]"),
    "classes": (Net(k=7), Space(classes=7), "classes: the model has 7, the data has 10"),
    "classes found out": (Net(k=7), None, "classes: the model has 7, the data has 10"),
    "thousand classes": (Net(k=1000), None, 'classes="imagenet" gives the 1,000 labels'),
    "declared otherwise": (Net(k=7), Space(classes=10), "the model declares 10 and returns 7"),
    "probabilities": (Net(lambda z: z.softmax(1)), None, 'probabilities where logits.*outputs="probabilities"'),
    "one-hot": (Net(lambda z: torch.eye(10)[z.argmax(1)]), None, "probabilities where logits are declared"),
    "nan": (Net(lambda z: z * np.nan), None, "NaN or Inf logits"),
    "rank of the output": (Net(lambda z: z[:, :, None]), None, r"returned a float32 tensor of shape \[4, 10, 1\]"),
    "labels instead": (Net(lambda z: z.argmax(1)), None, "returned a int64 tensor"),
    "rows": (Net(lambda z: z[:1]), None, r"output: got torch.float32 \[1, 10\]; allowed: float logits \[4, K\]"),
    "no output": (Net(lambda z: None), None, "an object of type NoneType"),
}


@pytest.mark.parametrize(("model", "space", "said"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(model, space, said):
    with pytest.raises(BadInput, match=rf"Net does not fit small: .*{said}"):
        check_compatible(as_target(model, space=space), DATA)


def test_everything_is_reported_at_once():
    target = as_target(Net(), space=Space((1, 8, 8), classes=3))
    with pytest.raises(BadInput, match=r"channels: .*; classes: "):
        check_compatible(target, DATA)


def test_unfamiliar_inputs_need_no_labels_and_no_common_classes():
    unlabelled = from_arrays(rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), None, "odd")
    other = from_arrays(rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6), "other")
    target = as_target(Net(), space=Space(classes=10))
    for data in (unlabelled, other):
        assert check_compatible(target, data, labels=False).classes == 10
    with pytest.raises(BadInput, match="labels: the data has none"):
        check_compatible(target, unlabelled)
    with pytest.raises(BadInput, match="classes: the model has 10, the data has 6"):
        check_compatible(target, other)


def test_declared_probabilities_and_open_sizes_fit():
    check_compatible(
        TorchTarget(Net(lambda z: z.softmax(1)), space=Space((3, None, None)), outputs="probabilities"), DATA
    )


def test_labels_of_a_black_box_are_not_taken_for_probabilities():
    class Labels:
        name, task, access, space, module = "labels", "classification", frozenset({"decision"}), Space(), None

        def __call__(self, x):
            return torch.eye(10)[: len(x)]

        def fingerprint(self):
            return ""

    check_compatible(Labels(), DATA)


def test_an_empty_subset_is_refused():
    with pytest.raises(BadInput, match="small: an empty set"):
        check_compatible(as_target(Net()), DATA.subset([]))
