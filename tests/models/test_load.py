import sys

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.errors import BadInput, Unavailable
from withstand.models import TorchTarget
from withstand.models.normalise import normalisation
from withstand.protocols import Target

x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# Specs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["resnet18", "timm:", "keras:resnet", "", "model.pt", "ftp://x/predict", "x.python:f", "a:b.py:c:d"]
)
def test_specs_that_cannot_be_read_are_refused(spec):
    with pytest.raises(BadInput, match=r"cannot read|which is not a file"):
        ws.load_model(spec)


def test_modules_are_sent_to_as_target():
    with pytest.raises(BadInput, match=r"model: got Linear; .* call as_target"):
        ws.load_model(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_unknown_options_get_the_nearest():
    with pytest.raises(BadInput, match=r"timm:resnet18: option: there is no 'pretraned'. Did you mean pretrained"):
        ws.load_model("timm:resnet18", pretraned=True)
    with pytest.raises(BadInput, match=r"zoo:lenet: option: there is no 'size'"):
        ws.load_model("zoo:lenet", size=32)


# zoo -------------------------------------------------------------------------------------------------------------


def test_zoo_networks_need_weights_or_a_word():
    with pytest.raises(BadInput, match=r"weights: got nothing; .* pretrained=False for an untrained network"):
        ws.load_model("zoo:lenet")
    with pytest.raises(BadInput, match="weights: got nothing"):
        ws.load_model("zoo:lenet", pretrained=True)
    before = torch.random.get_rng_state()
    target = ws.load_model("zoo:lenet", pretrained=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        again = ws.load_model("zoo:lenet", pretrained=False)
    assert isinstance(target, TorchTarget)
    assert target.fingerprint() == again.fingerprint()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(m.training for m in target.module.modules())
    assert target.name == "zoo:lenet"
    assert target.notes == ()
    with pytest.raises(BadInput, match="Did you mean lenet"):
        ws.load_model("zoo:lennet")


def test_zoo_weights_bring_their_normalisation_and_say_so(tmp_path):
    made = ws.load_model("zoo:lenet", pretrained=False, classes=4)
    torch.save(made.model.state_dict(), tmp_path / "mine.pt")
    target = ws.load_model("zoo:lenet", tmp_path / "mine.pt", classes=4)
    assert target.name == "zoo:lenet [mine]"
    assert target.space.classes == 4
    assert "normalised with mean 0.5 0.5 0.5" in target.notes[0]
    assert torch.allclose(target(x), made(x * 2 - 1), atol=1e-6)
    bare = ws.load_model("zoo:lenet", tmp_path / "mine.pt", mean="none", classes=4, name="bare")
    assert torch.equal(bare(x), made(x))
    assert (bare.notes, bare.name) == ((), "bare")
    with pytest.raises(
        BadInput, match=r"weights .*mine\.pt: the keys do not fit LeNet: 2 of another shape: fc3\.weight"
    ):
        ws.load_model("zoo:lenet", tmp_path / "mine.pt")


# timm, torchvision -----------------------------------------------------------------------------------------------


def test_timm_takes_size_and_normalisation_from_its_configuration(tmp_path):
    target: Target = ws.load_model("timm:test_vit", pretrained=False)
    assert target.space.shape == (3, 160, 160)
    assert target.space.classes == 1000
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in target.notes[0]
    assert target(torch.rand(1, 3, 160, 160)).shape == (1, 1000)
    convolutional = ws.load_model("timm:test_resnet", pretrained=False, classes=7)
    assert convolutional.space.shape == (3, None, None)
    assert convolutional(x).shape == (2, 7)
    assert ws.load_model("timm:test_resnet", pretrained=False, size=48).space.shape == (3, 48, 48)


def test_the_class_count_is_read_from_the_weights(tmp_path):
    for spec in ("timm:test_resnet", "torchvision:squeezenet1_1", "torchvision:resnet18"):
        made = ws.load_model(spec, pretrained=False, classes=6)
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in made.model.model.state_dict().items()}}, tmp_path / "w.pt"
        )
        target = ws.load_model(spec, weights=tmp_path / "w.pt")
        assert target.space.classes == 6
        assert torch.equal(target(x * 1.0), made(x))


def test_names_that_a_library_lacks_get_the_nearest():
    for spec, near in (
        ("timm:resnet18x", "resnet18"),
        ("timm:resnet18.nowhere", "resnet18"),
        ("torchvision:resnet19", "resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "Did you mean|Known"),
    ):
        with pytest.raises(BadInput, match=rf"model: there is no .*{near}"):
            ws.load_model(spec)


def test_published_weights_that_cannot_be_fetched_are_said(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", offline)
    for spec, options in (("timm:resnet18", {}), ("timm:resnet18", {"pretrained": True}), ("timm:local-dir:/none", {})):
        with pytest.raises(
            Unavailable, match=r"could not be fetched: no network\. Without a network, give weights=FILE"
        ):
            ws.load_model(spec, **options)
    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(Unavailable, match="could not be fetched: no network"):
        ws.load_model("torchvision:resnet18")


def test_published_weights_keep_their_classes(tmp_path):
    for spec in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(BadInput, match="classes: got 10; allowed: 1000"):
            ws.load_model(spec, classes=10)
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(BadInput, match="a mapping from names to tensors"):
        ws.load_model("timm:resnet18", tmp_path / "w.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(BadInput, match="pretrained: got True"):
        ws.load_model("timm:resnet18", tmp_path / "w.pt", pretrained=True)


# Python files ----------------------------------------------------------------------------------------------------

CODE = """
import torch
from helper_beside import K

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, K)
    def forward(self, x):
        return self.fc(x.mean((2, 3)))

def make():
    return Net()

def number():
    return 3

def broken():
    raise RuntimeError("no such layer")
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "helper_beside.py").write_text("K = 5")
    (tmp_path / "my net.py").write_text(CODE)
    yield tmp_path / "my net.py"
    sys.modules.pop("helper_beside", None)


def test_a_factory_in_a_file(file, tmp_path):
    path = list(sys.path)
    target = ws.load_model(f"{file}:make")
    assert sys.path == path
    assert target(x).shape == (2, 5)
    assert isinstance(target, TorchTarget)
    assert target.fingerprint() == ws.load_model(f"{file}:make").fingerprint()
    torch.save({"fc.weight": torch.ones(5, 3), "fc.bias": torch.zeros(5)}, tmp_path / "w.pt")
    loaded = ws.load_model(f"{file}:make", tmp_path / "w.pt", mean=0.5, std=(0.5, 0.5, 0.25))
    expected = ((x - 0.5) / torch.tensor([0.5, 0.5, 0.25]).view(1, 3, 1, 1)).mean((2, 3)).sum(1)
    assert torch.allclose(loaded(x), expected[:, None].expand(2, 5), atol=1e-6)
    file.write_text(CODE + "\n# changed")
    assert ws.load_model(f"{file}:make").fingerprint() != target.fingerprint()


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for i in (1, 2):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "net.py").write_text(f"import torch\ndef make(): return torch.nn.Linear({i}, 1)")
    widths = [ws.load_model(f"{tmp_path}/{i}/net.py:make").model.in_features for i in (1, 2)]
    assert widths == [1, 2]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (":mak", r"factory: there is no 'mak'. Did you mean make"),
        ("", r"my net\.py:factory. Functions of that file: Net, make, number, broken"),
        (":number", r"number\(\): got a int; allowed: a torch\.nn\.Module"),
        (":broken", r"broken\(\) failed: RuntimeError: no such layer \(my net\.py, line 19\)"),
    ],
)
def test_files_without_the_right_factory_are_refused(file, end, said):
    with pytest.raises(BadInput, match=said):
        ws.load_model(f"{file}{end}")


@pytest.mark.parametrize("code", ["import nowhere_to_be_found", "def make(:", "raise SystemExit(3)", "1 / 0"])
def test_files_that_fail_are_refused_and_forgotten(tmp_path, code):
    (tmp_path / "bad.py").write_text(code)
    for _ in range(2):
        with pytest.raises(BadInput, match=r"bad\.py failed: (ModuleNotFound|Syntax|SystemExit|ZeroDivision)"):
            ws.load_model(f"{tmp_path}/bad.py:make")
    with pytest.raises(BadInput, match="which is not a file"):
        ws.load_model(f"{tmp_path}/none.py:make")


def test_declared_probabilities(tmp_path):
    code = "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(1))"
    (tmp_path / "soft.py").write_text(code)
    target = ws.load_model(f"{tmp_path}/soft.py:make", outputs="probabilities")
    assert torch.allclose(target(x).exp().sum(1), torch.ones(2))
    with pytest.raises(BadInput, match="outputs: got 'labels'"):
        ws.load_model(f"{tmp_path}/soft.py:make", outputs="labels")


# Normalisation ---------------------------------------------------------------------------------------------------


def test_normalisation_comes_from_numbers_presets_and_sources():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("imagenet", "imagenet", None, 3) == (imagenet, ())
    assert normalisation("imagenet", None, None, 3) == (imagenet, ())
    assert normalisation("cifar10", "imagenet", None, 3)[0] == ((0.4914, 0.4822, 0.4465), imagenet[1])
    assert normalisation("0.1, 0.2,0.3", "1 1 1", None, 3)[0] == ((0.1, 0.2, 0.3), (1, 1, 1))
    assert normalisation(0.5, 0.25, imagenet, 3) == (((0.5,), (0.25,)), ())
    assert normalisation("none", "none", imagenet, 3) == (None, ())
    assert normalisation(None, None, None, 3) == (None, ())
    assert normalisation(None, None, imagenet, 3)[0] == imagenet


def test_mean_and_std_must_agree_where_the_channels_are_unknown():
    assert normalisation((0.5, 0.4, 0.3), 0.5, None, None)[0] == ((0.5, 0.4, 0.3), (0.5,))
    with pytest.raises(BadInput, match="std: got 2 values; allowed: 1, or as many as mean has: 3"):
        normalisation((0.5, 0.5, 0.5), (0.5, 0.5), None, None)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (0.5, None, "std: got nothing.* go together"),
        (None, 0.5, "mean: got nothing"),
        ("imagnet", 0.5, "mean: got 'imagnet'; allowed: one number per channel.* imagenet, cifar10"),
        ((0.5, "x"), 0.5, "mean: got"),
        ((0.5, 0.5), (0.5, 0.5), "mean: got 2 values; allowed: 1 or 3"),
        ((0.5, 0.5, 0.5), (0.5, 0.5), "std: got 2 values; allowed: 1 or 3"),
        (0.5, 0, "std: got .* allowed: numbers > 0"),
        ((123.7, 116.3, 103.5), (58, 57, 57), r"mean: got .* units of the \[0, 1\] range. Divide by 255"),
    ],
)
def test_bad_normalisation_is_refused(mean, std, said):
    with pytest.raises(BadInput, match=said):
        normalisation(mean, std, None, 3)
