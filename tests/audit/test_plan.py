"""What an audit is about to do: which checks, on what, with what beside it."""

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.audit.plan import make_plan
from withstand.audit.presets import PRESETS, checks_of, radii_of
from withstand.data import from_arrays, from_series
from withstand.errors import BadInput
from withstand.models import TorchTarget
from withstand.protocols import Space


class Learns:
    """A black box that knows what it returns only after its first answer."""

    name, task, module, space = "box", "classification", None, Space((1, 8, 8), (0.0, 1.0), None)
    access = frozenset({"decision"})

    def __call__(self, x):
        self.access = frozenset({"decision", "scores"})
        return x.flatten(1)[:, :10]

    def fingerprint(self):
        return "box"


def net(shape=(1, 8, 8), classes=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), classes))


@pytest.fixture
def data():
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return from_arrays(x, torch.arange(20) % 10, classes=10)


def test_what_an_endpoint_allows_is_learned_before_the_checks_are_chosen(data):
    plan = make_plan({"box": Learns()}, data, "quick")
    attacks = [repr(c) for name, c in plan.checks.items() if name.startswith("blackbox")]
    assert any("square" in text for text in attacks)
    assert any("boundary" in text for text in attacks)
    assert not plan.checks.keys() & {"robust", "curve"}


@pytest.mark.data
def test_a_named_other_set_is_brought_to_the_shape_of_the_audited_one(data, data_root, monkeypatch):
    monkeypatch.setenv("WITHSTAND_DATA", str(data_root))
    plan = make_plan({"net": net()}, data, "quick", given={"ood": "dtd"})  # photographs of several shapes
    assert plan.given["ood"].space.shape == (1, 8, 8)
    assert "unfamiliar" in plan.checks


def test_what_detectors_are_fitted_on_by_name_is_the_training_part(data):
    plan = make_plan({"net": net()}, data, checks=["detection(linf(0.1))"], given={"train": "digits"})
    assert plan.given["train"].fingerprint() == ws.load_data("digits", split="train").fingerprint()


def test_other_models_must_fit_the_data(data):
    with pytest.raises(BadInput, match="does not fit"):
        make_plan({"net": net()}, data, "quick", given={"surrogate": net(classes=7)})


def test_a_model_that_does_not_say_has_the_range_of_the_data():
    waves = from_series(torch.arange(24.0).view(4, 6).sin(), [0, 1, 0, 1])
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))
    given = TorchTarget(layer, "layer")
    plan = make_plan({"layer": given}, waves, checks=["clean"])
    assert plan.models["layer"].space.box is None
    assert given.space.box == (0.0, 1.0), "the caller's own is left alone"
    told = TorchTarget(layer, "layer", Space((1, 6), (-2.0, 2.0), 2))
    assert make_plan({"layer": told}, waves, checks=["clean"]).models["layer"].space.box == (-2.0, 2.0)


def test_arrays_are_series_for_a_model_of_series():
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))
    x, y = torch.arange(24.0).view(4, 1, 6).sin(), torch.tensor([0, 1, 0, 1])
    plan = make_plan({"layer": TorchTarget(layer, "layer", Space((1, 6), None, 2))}, (x, y), checks=["clean"])
    assert plan.data.space == Space((1, 6), None, 2)


def test_what_no_check_asks_for_is_refused(data):
    with pytest.raises(BadInput, match="Did you mean surrogate"):
        make_plan({"net": net()}, data, "quick", given={"surogate": net()})
    with pytest.raises(BadInput, match="given: got surrogate; allowed: what the checks of this audit ask for: nothing"):
        make_plan({"net": net()}, data, checks=["clean"], given={"surrogate": net()})


def names(preset="standard", **arguments):
    return list(checks_of(preset, **arguments))


ALL = ("gradients", "features", "scores", "decision")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_what_applies(preset):
    colour, given = Space((3, 32, 32)), {"surrogate", "ood"}
    everything = names(preset, space=colour, given=given, access=ALL)
    assert {"clean", "robust", "curve", "per_class", "corruptions", "transfer", "unfamiliar", "trust"} <= {*everything}
    assert not {"transfer", "guided", "unfamiliar"} & {*names(preset, space=colour, access=ALL)}  # nothing was given
    assert "guided" in names(preset, space=colour, given={"guide"}, access=ALL)
    assert "guided" not in names(preset, space=colour, given={"guide"}, access=("scores", "decision"))
    assert "corruptions" not in names(preset, space=Space((7,), None))
    assert "corruptions" in names(preset, space=Space((1, 8, 8)))
    scores = names(preset, space=colour, given=given, access=("scores", "decision"))
    assert {"clean", "blackbox", "blackbox-2", "unfamiliar"} <= {*scores}
    assert not {"robust", "curve", "minimum_distance"} & {*scores}
    decisions = checks_of(preset, space=colour, access=("decision",))
    assert [repr(c) for n, c in decisions.items() if n.startswith("blackbox")] == [
        repr(c) for n, c in decisions.items() if n == "blackbox"
    ]
    assert "boundary" in repr(decisions["blackbox"])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_leave_squares_to_images(preset):
    said = [repr(c) for c in checks_of(preset, space=Space((2, 40), None), access=ALL).values()]
    assert {"robust", "curve", "trust"} <= {text.partition("(")[0] for text in said}
    assert all("apgd" in text for text in said if text.startswith("robust"))
    assert not any(text.startswith(("blackbox(linf", "corruptions", "saliency")) for text in said)


def test_alexnet_is_the_reference_of_imagenet_alone():
    imagenet = Space((3, 224, 224), classes=1000)
    assert checks_of("standard", space=imagenet)["corruptions"].reference == "alexnet"
    assert checks_of("standard", space=imagenet, given={"reference"})["corruptions"].reference is None
    assert checks_of("quick", space=imagenet)["corruptions"].reference is None
    assert checks_of("standard", space=Space((3, 224, 224), classes=10))["corruptions"].reference is None


@pytest.mark.parametrize(
    ("shape", "radii"),
    [
        ((3, 32, 32), ("linf(8/255)", "l2(0.5)")),
        ((3, 224, 224), ("linf(4/255)", "l2(3.0)")),
        ((1, 224, 224), ("linf(4/255)", "l2(3.0)")),
        ((1, 28, 28), ("linf(0.3)", "l2(2.0)")),
        ((1, 8, 8), ("linf(0.15)", "l2(0.5)")),
        ((2, 40), ("linf(0.25)", "l2(1.0)")),
        (None, ("linf(8/255)", "l2(0.5)")),
    ],
)
def test_radii_are_the_usual_ones_of_the_data(shape, radii):
    assert radii_of(Space(shape)) == radii


def test_checks_by_hand_are_taken_as_they_are_and_numbered():
    assert names(checks=["clean", "clean(examples=5)", ws.parse("per_class", "check")]) == [
        "clean",
        "clean-2",
        "per_class",
    ]
    with pytest.raises(BadInput, match="at least one of"):
        checks_of(checks=[])
    with pytest.raises(BadInput, match="Did you mean quick"):
        checks_of("quik")


def test_a_model_that_does_not_say_has_the_classes_that_it_answers_with(data):
    own = ws.models.as_target(net())
    plan = make_plan({"net": own}, data, checks=["clean"])
    assert plan.models["net"].space.classes == 10
    assert plan.models["net"].fingerprint() == own.fingerprint()
    assert own.space.classes is None
