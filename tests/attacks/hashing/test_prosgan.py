"""ProS-GAN: losses by hand, its turns and rates, and what the generator does to rankings."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.hardening.test_contract import Interrupted
from tests.training.conftest import same
from withstand.attacks.fit import fit_attack
from withstand.attacks.generative.generator import Generator
from withstand.attacks.hashing.centres import sign
from withstand.attacks.hashing.database import Database
from withstand.attacks.hashing.painter import CodeGenerator, Critic, Painter
from withstand.attacks.hashing.prosgan import ProSGAN, ProSGANRecipe, likelihood, lsgan
from withstand.attacks.hashing.tha import PrototypeNet
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.models.target import TorchTarget
from withstand.protocols import Space
from withstand.random import Rows, derive
from withstand.registry import parse
from withstand.representation.metrics import mean_average_precision
from withstand.threats import Linf
from withstand.training import Trainer
from withstand.training.recipe import Step

BITS = 8
SMALL: dict[str, Any] = {"bits": BITS, "ngf": 4, "blocks": 1, "ndf": 4, "hidden": 16, "feature": 8}
TRAINER: dict[str, Any] = {"epochs": 4, "batch": 8, "optimizer": "adam(2e-3, (0.5, 0.999))", "accelerator": "cpu"}


@pytest.fixture(scope="module")
def hasher() -> Any:
    trainer = Trainer(epochs=12, batch=20, optimizer="adam(1e-2)", accelerator="cpu")
    return trainer.fit(parse(f"hashing(loss=csq, bits={BITS})", "recipe"), cnn(), images(60)).last


@pytest.fixture(scope="module")
def shapes() -> Any:
    return images()


def system_of(recipe: ProSGANRecipe, model: nn.Module) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return recipe.setup(model, images(), Rows.count(0, 24))


def step_at(at: int, epoch: int = 0) -> Step:
    return Step(at, 12, epoch, 4, 0, Rows(derive(0, "epoch", epoch), torch.arange(10)))


def crafted(recipe: ProSGANRecipe, system: Any, at: int) -> Any:
    return recipe.craft(system, images().batch(range(10)), step_at(at))


def turns(recipe: ProSGANRecipe, system: Any, at: int) -> list[Any]:
    return list(recipe.updates(system, crafted(recipe, system, at), step_at(at)))


def test_the_likelihood_is_a_mean_over_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    h, codes = torch.tanh(torch.randn(3, 6, generator=g)), sign(torch.randn(5, 6, generator=g))
    y, labels = ((torch.rand(n, 4, generator=g) < 0.4).float() for n in (3, 5))
    terms = []
    for i in range(3):
        for j in range(5):
            theta = float(h[i] @ codes[j]) / 2
            terms.append(math.log1p(math.exp(theta)) - (theta if float(y[i] @ labels[j]) > 0 else 0.0))
    assert len({float(y[i] @ labels[j]) > 0 for i in range(3) for j in range(5)}) == 2
    assert float(likelihood(h, y, codes, labels)) == pytest.approx(sum(terms) / 15, rel=1e-5)


def test_lsgan_wants_the_labels_and_one_number_more() -> None:
    told, y = torch.tensor([[0.5, 0.0, 1.0], [1.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(lsgan(told, y, 1.0)) == pytest.approx((0.25 + 0 + 0 + 1 + 1 + 1) / 6)
    assert float(lsgan(told, y, 0.0)) == pytest.approx((0.25 + 0 + 1 + 1 + 1 + 0) / 6)


def test_both_losses_of_a_turn_are_those_of_the_paper(hasher) -> None:
    recipe = ProSGANRecipe(**SMALL, weights=(7.0, 3.0, 2.0), first=0.2)
    system = system_of(recipe, hasher)
    system.discriminator.eval()  # spectral norms stand still
    batch, at = crafted(recipe, system, 3), step_at(3)
    told, learned = (u.loss() for u in recipe.updates(system, batch, at))
    y, wanted = torch.eye(3)[torch.arange(10) % 3], batch.extra["target"]
    assert torch.equal(batch.y, y)
    with torch.no_grad():
        made = system.model(batch.x, wanted)
        real, fake, u = system.discriminator(batch.x), system.discriminator(made), hasher(made)
        code = sign(system.model.prototypes(wanted))
    one, none = torch.ones(10, 1), torch.zeros(10, 1)
    expected = ((real - torch.cat([y, none], 1)) ** 2).mean() + ((fake - torch.cat([wanted, one], 1)) ** 2).mean()
    assert float(told.detach()) == pytest.approx(float(expected) / 2, rel=1e-5)
    far = (((2 * made - 1) - (2 * batch.x - 1)) ** 2).mean()
    fooled = ((fake - torch.cat([wanted, none], 1)) ** 2).mean()
    assert float(learned.detach()) == pytest.approx(float(7 * far + 3 * (1 - (u * code).mean()) + 2 * fooled), rel=1e-5)
    assert float(at.said["target_bits"]) == pytest.approx(float((sign(u) == code).float().mean()))
    learned.backward()
    assert all(p.grad is None for p in system.model.prototypes.parameters())
    assert all(p.grad is not None for p in system.model.painter.parameters())
    system.zero_grad(set_to_none=True)
    told.backward()
    assert all(p.grad is None for p in system.model.parameters())


def test_prototypes_learn_first_and_codes_and_labels_at_once(hasher) -> None:
    recipe = ProSGANRecipe(**SMALL, first=0.25, repeats=4, quantisation=0.5)
    system, at = system_of(recipe, hasher), step_at(2)
    updates = list(recipe.updates(system, crafted(recipe, system, 2), at))
    assert [u.opt for u in updates] == ["prototypes"] * 4
    found = [float(u.loss().detach()) for u in updates]
    assert len(set(found)) > 1  # other label sets each time
    net, expected = system.model.prototypes, []
    for k in range(4):
        wanted = system.kinds[at.rows.integers((), 0, 3, "label sets", k)]
        with torch.no_grad():
            f = net.feature(wanted)
            h, guess = torch.tanh(net.hashing(f)), torch.sigmoid(system.classifier(f))
            pairs = likelihood(h, wanted, system.codes, system.labels)
            rest = 0.5 / 10 * ((sign(h) - h) ** 2).sum()
            expected.append(float(pairs + ((guess - wanted) ** 2).mean() + rest))
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_learns_in_every_third_step(hasher) -> None:
    recipe = ProSGANRecipe(**SMALL, first=0.25)
    system = system_of(recipe, hasher)
    opts = [[u.opt for u in turns(recipe, system, at)] for at in range(3, 9)]
    assert opts == [["discriminator", "main"], ["main"], ["main"]] * 2
    assert [u.opt for u in turns(ProSGANRecipe(**SMALL, first=0.25, weights=(1, 1, 0)), system, 3)] == ["main"]


def test_rates_of_prototypes_fall_and_the_discriminators_is_the_generators(hasher) -> None:
    recipe = ProSGANRecipe(**SMALL, first=0.8, repeats=1)
    system = system_of(recipe, hasher)
    made = recipe.optimizers(system, lambda p: torch.optim.Adam(p, 0.5))
    seen = []
    for at in range(0, 9, 2):  # of 9.6 steps
        turns(recipe, system, at)[0].before_step()
        seen.append(made["prototypes"].param_groups[0]["lr"])
    assert seen == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.005])
    made["main"].param_groups[0]["lr"] = 0.125
    turns(ProSGANRecipe(**SMALL, first=0.1), system, 9)[0].before_step()
    assert made["discriminator"].param_groups[0]["lr"] == 0.125
    named = {id(p) for o in made.values() for g in o.param_groups for p in g["params"]}
    assert named == {id(p) for p in system.parameters()}


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 8, 8), (1, 28, 28), (2, 32, 20), (3, 36, 36)])
def test_images_of_any_size_come_back_in_range_and_depend_on_what_is_wanted(shape) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CodeGenerator(PrototypeNet(3, BITS, 16, 8), Painter(shape, 8, ngf=4, blocks=1))
        critic = Critic(shape, 3, ndf=4)
    x = Rows.count(0, 2).uniform(shape, "x")
    a, b = (net(x, torch.eye(3)[[k, k]]).detach() for k in (0, 1))
    assert a.shape == x.shape
    assert 0 <= float(a.min()) < float(a.max()) <= 1
    assert not torch.allclose(a, b)
    assert not torch.allclose(a[0], a[1])
    assert critic(x).shape == (2, 4)
    assert torch.equal(critic(x), critic.eval().layers(2 * x - 1).flatten(1))
    net.painter.last.weight.data[:, 4:] = 0  # the image itself
    assert not torch.allclose(*net(x, torch.eye(3)[[0, 0]]))
    assert torch.equal(net.codes(torch.eye(3)), sign(net.prototypes(torch.eye(3))))


def test_for_224_pixels_the_networks_are_those_of_the_official_code() -> None:
    with torch.device("meta"):
        painter, critic = Painter((3, 224, 224)), Critic((3, 224, 224), 38)
        assert painter.start == (128, 14, 14)
        assert critic(torch.empty(2, 3, 224, 224)).shape == (2, 39)
    convs = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in critic.modules() if isinstance(m, nn.Conv2d)]
    wide = [(3, 64, 4), (64, 128, 4), (128, 256, 4), (256, 512, 4), (512, 1024, 4)]
    assert convs == [*wide, (1024, 39, 7)]
    ups = [(m.in_channels, m.out_channels) for m in painter.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert ups == [(128, 64), (64, 32), (32, 16), (16, 8), (256, 128), (128, 64)]
    plain = [(m.in_channels, m.out_channels) for m in painter.modules() if isinstance(m, nn.Conv2d)]
    assert plain == [(8, 3), (6, 64), (64, 128), (128, 256), *[(256, 256)] * 12, (67, 3)]


def test_strided_layers_of_the_critic_have_a_spectral_norm_of_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = Critic((1, 32, 32), 3, ndf=4)
        for _ in range(60):
            critic(torch.rand(1, 1, 32, 32))
    norms = [
        float(torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2))
        for m in critic.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert norms[:-1] == pytest.approx([1, 1, 1], abs=0.02)
    assert abs(norms[-1] - 1) > 0.05


def test_it_goes_on_from_a_checkpoint_bit_for_bit(hasher, shapes, tmp_path) -> None:
    recipe = ProSGANRecipe(**SMALL, first=0.4, repeats=2)
    whole = Trainer(**TRAINER).fit(recipe, hasher, shapes).last
    for at in (3, 8):  # amid the prototypes, and amid the rest
        trainer, folder = Trainer(**TRAINER, checkpoint_seconds=0), tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(Interrupted(recipe, at=at), hasher, shapes, out=folder)
        assert same(whole, trainer.fit(recipe, hasher, shapes, out=folder).last)


def test_its_images_are_found_among_what_was_wanted(hasher, tmp_path) -> None:
    data = images(60)
    before = {k: v.clone() for k, v in hasher.state_dict().items()}
    settings = {**SMALL, "ngf": 8, "hidden": 32, "feature": 16}
    recipe = ProSGANRecipe(**settings, first=0.25, repeats=8, weights=(10.0, 5.0, 1.0))
    more = {**TRAINER, "epochs": 20, "batch": 10}
    fitted = fit_attack(recipe, TorchTarget(hasher, task="hashing"), data, out=tmp_path / "g", **more)
    assert fitted.kind == "hash_generator"
    assert all(torch.equal(v, before[k]) for k, v in hasher.state_dict().items())
    base, batch = Database.hashed(hasher, data), data.batch(range(60))
    attack = ProSGAN(Linf(1.0), f"artefact:{tmp_path / 'g'}", database=base)
    wanted = attack.targets_of(batch.y, 0, torch.arange(60))  # type: ignore[arg-type]
    z = attack(hasher, batch.x, batch.y)
    with torch.no_grad():
        assert torch.equal(fitted.module(batch.x, wanted), ProSGAN(Linf(1.0), fitted).generate(batch.x, wanted))
        clean, moved = (mean_average_precision(sign(hasher(v)), wanted, base.codes, base.labels) for v in (batch.x, z))
    assert clean < 0.5
    assert moved > clean + 0.3
    assert float((z - batch.x).square().mean()) < 0.09


def test_a_wide_threat_leaves_the_images_and_the_last_iterate_asks_no_model(queries, base) -> None:
    x, y = queries
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = CodeGenerator(PrototypeNet(4, 5, 16, 8), Painter((1, 8, 8), 8, ngf=4, blocks=1))

    def unasked(_: Any) -> Any:
        raise AssertionError("the model was asked")

    given: dict[str, Any] = {"generator": net, "database": base, "keep": "last", "active": False}
    attack = ProSGAN(Linf(1.0), target=2, **given)
    made = attack.generate(x, torch.eye(4)[[2] * 12])
    assert torch.allclose(attack(unasked, x, y), made, atol=1e-12)
    near = ProSGAN(Linf(0.1), target=2, **given)(unasked, x, y)
    assert torch.allclose(near, made.clamp(x - 0.1, x + 0.1), atol=1e-9)


def test_what_does_not_fit_is_refused(hasher, queries, base, shapes) -> None:
    x, y = queries

    def of(classes: int = 4, bits: int = BITS, shape: Any = (1, 8, 8)) -> CodeGenerator:
        return CodeGenerator(PrototypeNet(classes, bits, 16, 8), Painter(shape, 8, ngf=4, blocks=1))

    single = hasher.to(torch.float64)
    try:
        with pytest.raises(BadInput, match="generator: got one for 3 classes"):
            ProSGAN(generator=of(3), database=base)(single, x, y)
        with pytest.raises(BadInput, match="generator: got codes of 5 bits"):
            ProSGAN(generator=of(bits=5), database=base)(single, x, y)
        with pytest.raises(BadInput, match="generator: got one for 5 bits"):
            ProSGAN(generator=of(bits=5)).refuse(single, x[:1])
        with pytest.raises(BadInput, match=r"\[1, 12, 8\], as the generator was made for"):
            ProSGAN(generator=of(shape=(1, 12, 8))).refuse(single, x[:1])
        with pytest.raises(BadInput, match="fit-attack 'prosgan_generator"):
            ProSGAN(database=base)(single, x, y)
        with pytest.raises(BadInput, match="CodeGenerator"):
            ProSGAN(generator=Generator(1, 4, 1), database=base)(single, x, y)
    finally:
        hasher.float()
    with pytest.raises(BadInput, match="number of bits"):
        ProSGANRecipe(**{**SMALL, "bits": 4}).setup(hasher, shapes, Rows.count(0, 24))
    tiny = from_arrays(Rows.count(0, 6).uniform((1, 4, 8), "x").numpy(), (torch.arange(6) % 3).numpy(), name="tiny")
    with pytest.raises(BadInput, match="5 pixels or more"):
        ProSGANRecipe(**SMALL).setup(hasher, tiny, Rows.count(0, 6))
    with pytest.raises(BadInput, match="images of one size"):
        ProSGANRecipe(**SMALL).deploy(None, Space((1, None, None), (0.0, 1.0), 3))
    for wrong in ({"first": 0.0}, {"weights": (1.0, 0.0, 1.0)}, {"every": 0}, {"quantisation": -1.0}, {"bits": 0}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            ProSGANRecipe(**wrong)  # type: ignore[arg-type]
