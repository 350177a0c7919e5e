import argparse
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from withstand.errors import BadInput
from withstand.models import load_weights, read_weights


def net(k=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(k))


@pytest.fixture
def model():
    made = net()
    made(torch.zeros(2, 1, 5, 5))
    return made


def fresh():
    made = net()
    made(torch.zeros(2, 1, 5, 5))
    for p in made.parameters():
        nn.init.normal_(p)
    return made


def loads(path, model, **options):
    other = fresh()
    load_weights(other, read_weights(path, **options))
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


@pytest.mark.parametrize("suffix", ["pt", "pth", "th", "bin", "ckpt"])
@pytest.mark.parametrize("old", [False, True])
def test_state_dicts_load(model, tmp_path, suffix, old):
    torch.save(model.state_dict(), tmp_path / f"w.{suffix}", _use_new_zipfile_serialization=not old)
    assert loads(tmp_path / f"w.{suffix}", model)


def test_safetensors_load(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert loads(str(tmp_path / "w.safetensors"), model)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod."])
def test_wrappers_and_prefixes_are_taken_off(model, tmp_path, wrapper, prefix):
    state = {prefix + k: v for k, v in model.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3, "best": 0.5}, tmp_path / "w.pt")
    assert loads(tmp_path / "w.pt", model)
    torch.save({"model": {"state_dict": state}}, tmp_path / "w.pt")
    assert loads(tmp_path / "w.pt", model)


def test_prefixes_that_the_model_has_itself_stay():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)

    first, second = Own(), Own()
    load_weights(second, first.state_dict())
    assert torch.equal(first.model.weight, second.model.weight)
    load_weights(second, {f"module.{k}": v + 1 for k, v in first.state_dict().items()})
    assert torch.equal(first.model.weight + 1, second.model.weight)


def test_counters_of_batch_norm_may_be_missing(model):
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    other = fresh()
    load_weights(other, state)
    assert all(torch.equal(other.state_dict()[k], v) for k, v in state.items())


def test_half_precision_weights_are_widened(model):
    other = fresh()
    load_weights(other, {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()})
    assert other[0].weight.dtype == torch.float32


def test_weights_that_do_not_fit_are_listed(model):
    state = model.state_dict()
    state["3.weight"] = torch.zeros(7, 36)
    for i in range(8):
        state[f"extra.{i}"] = torch.zeros(1)
    del state["0.bias"], state["1.running_mean"]
    with pytest.raises(BadInput) as caught:
        load_weights(fresh(), state, "weights a.pt")
    said = str(caught.value)
    assert said.startswith("weights a.pt: the keys do not fit Sequential: 2 missing: 0.bias, 1.running_mean; ")
    assert "8 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4, ...; " in said
    assert "1 of another shape: 3.weight is [7, 36], the model's is [3, 36]" in said
    with pytest.raises(BadInput, match="8 missing"):
        load_weights(fresh(), {"other": torch.zeros(1)})


class Evil:
    def __reduce__(self):
        return (print, ("owned",))


@pytest.mark.parametrize("old", [False, True])
def test_pickled_objects_are_refused_with_advice(model, tmp_path, capsys, old):
    checkpoint = {"state_dict": model.state_dict(), "args": argparse.Namespace(lr=1)}
    for held, asked in ((checkpoint, "argparse.Namespace"), (model, "torch.nn"), ({"x": Evil()}, "print")):
        torch.save(held, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
        with pytest.raises(BadInput, match=rf"holds pickled objects.*allow_pickle=True.*{re.escape(asked)}"):
            read_weights(tmp_path / "w.pt")
    assert "owned" not in capsys.readouterr().out


def test_pickles_load_when_they_are_trusted(model, tmp_path):
    torch.save(model, tmp_path / "w.pt")
    assert loads(tmp_path / "w.pt", model, allow_pickle=True)
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "w.pt")
    assert loads(tmp_path / "w.pt", model, allow_pickle=True)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("keep", [0.99, 0.5, 0.05])
def test_truncated_files_are_refused(model, tmp_path, kind, keep):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(BadInput, match=rf"{re.escape(str(path))} is (damaged|truncated)"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"hello there", b"PK", b"PK\x03\x04 and more", b"\x80\x04.", b"{}"])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=r"weights: .*w\.(pt|safetensors)"):
            read_weights(tmp_path / name)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(BadInput, match="which is not a file"):
            read_weights(path)


@pytest.mark.parametrize(
    "held", [{}, [torch.zeros(1)], torch.zeros(3), {"epoch": 3}, {"state_dict": {"a": 1}}, {1: torch.zeros(1)}]
)
def test_files_without_a_state_dict_are_refused(tmp_path, held):
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(BadInput, match="allowed: a mapping from names to tensors"):
        read_weights(tmp_path / "w.pt")


def test_torchscript_is_refused_with_advice(tmp_path):
    class Small(nn.Module):
        def forward(self, x):
            return x + 1

    torch.jit.trace(Small(), torch.zeros(1)).save(tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"a TorchScript program.*torch\.jit\.load in a factory"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_weights_are_refused(model, tmp_path, value):
    state = model.state_dict()
    state["3.bias"][1] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"NaN or Inf in '3\.bias'"):
        read_weights(tmp_path / "w.pt")
