import copy

import pytest
import torch
from torch import nn

import withstand as ws
from tests.hardening.conftest import cnn, images
from withstand.attacks import PGD, Generated, TargetedGenerated
from withstand.attacks.fit import fit_attack
from withstand.attacks.generative import AIGAN, BIA, Generator
from withstand.attacks.generative.matrix import aimed, all_targets
from withstand.attacks.noise import Noise
from withstand.audit.craft import craft
from withstand.audit.transfer import transfer
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.models import as_target
from withstand.objectives import TargetedCrossEntropy
from withstand.threats import L2, Linf
from withstand.training import Trainer


class Shift(nn.Module):
    """Moves images by more than any threat of these tests, towards the target's own direction."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, target=None):
        self.calls += 1
        return x + (0.5 if target is None else target[:, None, None, None].to(x))


class Never(nn.Module):
    def forward(self, x):
        raise AssertionError("asked")


def generator(classes=0, seed=0):
    torch.manual_seed(seed)
    return Generator(1, ngf=4, blocks=1, classes=classes, output="residual" if classes else "image", reach=0.3)


@pytest.fixture(scope="module")
def shapes():
    return images()


def test_points_are_the_generators_projected_and_clipped():
    net, x = generator().eval(), torch.rand(6, 1, 8, 8)
    z = Generated(Linf(0.1), net)(cnn(), x)
    assert torch.allclose(z, net(x).clamp(x - 0.1, x + 0.1).clamp(0, 1), atol=1e-6)
    shifted = Generated(L2(0.5), Shift())(cnn(), x)
    assert ((shifted - x).flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()
    assert shifted.max() <= 1


def test_the_model_is_not_asked_and_no_label_is_needed():
    x, net = torch.rand(6, 1, 8, 8), Shift()
    for attack in (Generated(Linf(0.1), net), TargetedGenerated(Linf(0.1), net, target=1)):
        net.calls = 0
        found = attack.run(Never(), x)
        assert net.calls == 1
        assert int(found.forwards.sum()) == int(found.backwards.sum()) == 0
        assert torch.allclose(found.x_adv, (x + 0.1).clamp(0, 1))
        assert torch.equal(found.x_adv, attack.run(Never(), x, torch.zeros(6, dtype=torch.long)).x_adv)


@pytest.mark.parametrize("target", [2, torch.tensor([0, 1, 2, 0, 1, 2])])
def test_each_image_gets_its_own_target_in_whatever_blocks(target):
    net, x = generator(3).eval(), torch.rand(6, 1, 8, 8)
    every = torch.as_tensor(target).expand(6)
    wanted = net(x, every).detach().clamp(x - 0.2, x + 0.2).clamp(0, 1)
    attack = TargetedGenerated(Linf(0.2), net, target=target)
    assert torch.allclose(attack(cnn(), x), wanted, atol=1e-6)
    assert torch.allclose(attack(cnn(), x, block=4), wanted, atol=1e-6)
    judged = TargetedGenerated(Linf(0.2), net, target=target, keep="best", active=True)
    model = cnn().eval()
    found = judged.run(model, x, torch.zeros(6, dtype=torch.long))
    assert torch.equal(found.success, (model(found.x_adv).argmax(1) == every) & (every != 0))


@pytest.mark.parametrize(
    ("target", "y", "reached"),
    [
        (0, [0, 0], [False, False]),
        (0, [1, 1], [True, True]),
        (torch.tensor([0, 1]), [0, 0], [False, True]),
        (torch.tensor([0, 1]), [1, 1], [True, False]),
    ],
)
def test_an_image_of_the_target_itself_is_no_success(target, y, reached):
    x = torch.tensor([0.2, 0.25])[:, None, None, None].expand(2, 1, 6, 6).clone()
    attack = TargetedGenerated(Linf(0.1), Shift(), target=target, keep="best", active=True)
    found = attack.run(Brightness(), x, torch.tensor(y))
    assert found.success.tolist() == reached
    assert (found.cost_at_success >= 0).tolist() == reached


def test_with_no_target_it_aims_at_the_runner_up_and_says_what_that_costs():
    net, model, x = generator(3).eval(), cnn().eval(), torch.rand(6, 1, 8, 8)
    y = model(x).argmax(1)
    found = TargetedGenerated(Linf(0.2), net).run(model, x, y)
    second = model(x).topk(2, dim=1).indices[:, 1]
    assert torch.allclose(found.x_adv, net(x, second).detach().clamp(x - 0.2, x + 0.2).clamp(0, 1), atol=1e-6)
    assert found.forwards.tolist() == [1] * 6


def test_the_generator_runs_as_it_would_at_inference_and_is_left_as_it_was():
    net = generator().train()
    before = copy.deepcopy(net.state_dict())
    x = torch.rand(5, 1, 8, 8)
    attack = Generated(Linf(0.1), net)
    assert torch.equal(attack(cnn(), x), attack(cnn(), x))
    assert torch.allclose(attack(cnn(), x)[:2], attack(cnn(), x[:2]), atol=1e-6)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    double = attack(cnn().double(), x.double())
    assert double.dtype == torch.float64
    assert next(net.parameters()).dtype == torch.float32


def test_one_generator_serves_images_of_other_sizes():
    attack = Generated(Linf(0.1), generator())
    for side in (8, 13, 28):
        assert attack(Never(), torch.rand(2, 1, side, side)).shape == (2, 1, side, side)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (lambda: Generated(Linf(0.1)), "fit-attack"),
        (lambda: Generated(Linf(0.1), generator(3)), "0 to 2"),
        (lambda: TargetedGenerated(Linf(0.1), generator(), target=1), "aims at no class"),
        (lambda: TargetedGenerated(Linf(0.1), generator(3), target=3), "0 to 2"),
        (lambda: TargetedGenerated(Linf(0.1), generator(3), target=torch.tensor([1, 2])), "one for each"),
        (lambda: TargetedGenerated(Linf(0.1), generator(3), target=-1), "target"),
        (lambda: Generated(Linf(None), generator()), "radius"),
        (lambda: Generated(Linf(0.1), 3), "torch module"),
        (lambda: Generated(Linf(0.1), "runs/nowhere"), "artefact:FOLDER"),
        (lambda: Generated(Linf(0.1), "artefact:runs/nowhere"), "fit-attack"),
        (lambda: Generated(Linf(0.1), Generator(3, ngf=4, blocks=0)), "3, H, W"),
    ],
)
def test_what_does_not_fit_is_refused(attack, said):
    with pytest.raises(BadInput, match=said):
        attack()(cnn(), torch.rand(4, 1, 8, 8))


class Returns(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, x):
        return self.made(x)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: x[:2], r"\[2, 1, 8, 8\]"),
        (lambda x: x.flatten(1), r"\[4, 64\]"),
        (lambda x: x.mean(), r"\[4, 1, 8, 8\]"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x / 0, "finite"),
        (lambda x: torch.full_like(x, float("nan")), "finite"),
    ],
)
def test_a_generator_of_something_else_than_finite_images_is_refused(made, said):
    with pytest.raises(BadInput, match=said):
        Generated(Linf(0.1), Returns(made))(cnn(), torch.rand(4, 1, 8, 8))


def test_images_out_of_range_are_refused():
    with pytest.raises(BadInput, match="normalisation"):
        Generated(Linf(0.1), generator())(cnn(), torch.rand(4, 1, 8, 8) * 255)


def test_what_was_fitted_is_read_back_from_its_folder(shapes, tmp_path):
    unlabelled = from_arrays(shapes.batch(range(24)).x.numpy(), None)
    settings = {"epochs": 1, "batch": 8, "accelerator": "cpu"}
    recipe = BIA(layer="2", ngf=4, blocks=1)
    made = fit_attack(recipe, cnn(), unlabelled, out=tmp_path / "bia", **settings)
    assert made.kind == "generator"
    x = torch.rand(3, 1, 8, 8)
    kept = Generated(Linf(0.1), f"artefact:{tmp_path}/bia")
    assert torch.equal(kept(Never(), x), Generated(Linf(0.1), made)(Never(), x))
    aigan = fit_attack(
        AIGAN(attack="pgd(linf(0.2), steps=1)", ngf=4, blocks=1), cnn(), shapes, out=tmp_path / "g", **settings
    )
    targeted = TargetedGenerated(Linf(0.2), f"artefact:{tmp_path}/g", target=1)
    assert torch.equal(targeted(Never(), x), TargetedGenerated(Linf(0.2), aigan, target=1)(Never(), x))
    assert ws.attacks.TargetedGenerated is TargetedGenerated


def test_the_transfer_matrix_takes_attacks_that_ask_no_model(shapes, tmp_path):
    learned = Trainer(epochs=30, batch=8, optimizer="adam(1e-2)", accelerator="cpu")
    models = {n: as_target(learned.fit("standard", cnn(i), shapes).last, n) for i, n in enumerate("ab")}
    attacks = [Generated(Linf(0.1), generator()), "fgsm"]
    found = transfer({"a": models["a"]}, {"b": models["b"]}, shapes, attacks, out=tmp_path, threat=Linf(0.1))
    cells = {c["target"]: c for c in found["cells"] if c["attack"].startswith("generated")}
    assert set(cells) == {"a", "b"}
    assert next(r for r in found["runs"] if r["attack"].startswith("generated"))["passes"] == 0
    with pytest.raises(BadInput, match="ask no model"):
        transfer({"a": models["a"]}, {"b": models["b"]}, shapes, [Noise(Linf(0.1))], out=tmp_path / "n")


def test_written_points_say_whether_they_reached_their_target(shapes, tmp_path):
    model, x = cnn().eval(), shapes.batch(range(24)).x
    for target in (0, 2):  # untrained, the model says 0 for all
        attack = TargetedGenerated(Linf(0.5), Shift(), target=target)
        made = craft(as_target(model, "a"), shapes, attack, tmp_path / f"{target}.npz")
        said = model((x + 0.5 * (target > 0)).clamp(0, 1)).argmax(1)
        labels = torch.tensor([image["label"] for image in made["images"]])
        assert [image["success"] for image in made["images"]] == ((said == target) & (labels != target)).tolist()
        assert ((said == target) != (said != labels)).any()  # not the same as being wrong


class Brightness(nn.Module):
    """Three classes by the mean of an image: below 1/3, below 2/3, above."""

    def forward(self, x):
        return -(x.flatten(1).mean(1, keepdim=True) - torch.tensor([1 / 6, 1 / 2, 5 / 6], device=x.device)).abs()


def test_the_matrix_counts_every_wrong_target_of_every_image_that_is_right():
    x = torch.tensor([0.1, 0.1, 0.5, 0.9, 0.3])[:, None, None, None].expand(5, 1, 6, 6).clone()
    y = torch.tensor([0, 0, 1, 2, 2])  # the last one is wrong from the start
    attack = PGD(Linf(0.3), steps=5, objective=TargetedCrossEntropy(0), random_start=False)
    found = all_targets(attack, Brightness(), x, y)
    nan = float("nan")
    expected = torch.tensor([[nan, 1.0, 0.0], [1.0, nan, 1.0], [0.0, 1.0, nan]], dtype=torch.float64)
    assert torch.allclose(found.matrix, expected, equal_nan=True)
    assert found.counts.tolist() == [[0, 2, 2], [1, 0, 1], [1, 1, 0]]
    assert found.mean == pytest.approx(4 / 6)
    assert found.by_target.tolist() == [0.5, 1.0, 0.5]
    assert found.worst == 0.5
    assert not found.hit[~found.counted].any()
    assert found.seconds > 0


def test_the_matrix_knows_the_length_of_each_change():
    x = torch.tensor([0.1, 0.5])[:, None, None, None].expand(2, 1, 6, 6).double().clone()
    found = all_targets(TargetedGenerated(Linf(0.25), Shift()), Brightness(), x, torch.tensor([0, 1]))
    # it adds the target to 36 pixels: 0 or 0.25 each
    assert torch.allclose(found.l2, torch.tensor([[0.0, 1.5, 1.5], [0.0, 0.0, 1.5]]))
    assert found.hit.tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_matrix_lies_on_the_cpu_wherever_the_images_are():
    x, y = torch.tensor([0.1, 0.5])[:, None, None, None].expand(2, 1, 6, 6), torch.tensor([0, 1])
    attack = TargetedGenerated(Linf(0.25), Shift())
    here = all_targets(attack, Brightness(), x, y)
    there = all_targets(attack, Brightness().cuda(), x.cuda(), y.cuda())
    assert torch.equal(there.hit, here.hit)
    assert torch.allclose(there.l2, here.l2)


def test_an_attack_is_aimed_by_its_own_field_or_its_objective():
    assert aimed(TargetedGenerated(Linf(0.1)), 2).target == 2
    assert aimed(PGD(objective="targeted_margin"), 2).objective.target == 2
    with pytest.raises(BadInput, match="targeted"):
        aimed(PGD(), 2)
    with pytest.raises(BadInput, match="targeted"):
        aimed(Generated(), 2)


@pytest.mark.parametrize("y", [torch.tensor([0, 3]), torch.tensor([0, -1]), torch.tensor([0])])
def test_labels_that_are_no_classes_are_refused(y):
    with pytest.raises(BadInput, match="labels"):
        all_targets(PGD(objective="targeted_margin"), Brightness(), torch.full((2, 1, 6, 6), 0.1), y)
    with pytest.raises(BadInput, match="right"):
        all_targets(PGD(objective="targeted_margin"), Brightness(), torch.full((1, 1, 6, 6), 0.9), torch.tensor([0]))
