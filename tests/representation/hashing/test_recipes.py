"""The hashing recipes: what they minimise, step by step, and what they keep beside the model."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.hardening.conftest import cnn, images
from tests.training.conftest import same
from withstand.attacks.hashing.aim import CodeProduct
from withstand.attacks.hashing.centres import centre_codes, sign
from withstand.attacks.hashing.cga import CgA
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.hardening.harden import harden
from withstand.models.hashing import Hasher, hasher_in
from withstand.models.target import Logits, Normalised
from withstand.protocols import Batch, Seen
from withstand.random import Rows
from withstand.registry import parse
from withstand.training import SGD, Trainer
from withstand.training.recipe import Step

PGD = "pgd(linf(0.1), steps=3, step=1/4)"
K = 8


def step_of(batch: Batch, **more: Any) -> Step:
    assert batch.ids is not None
    return Step(**{"step": 0, "steps": 6, "epoch": 0, "epochs": 2, "seed": 1, "rows": Rows(3, batch.ids), **more})


def begun(recipe: Any, data: Any, ids: list[int]) -> tuple[Any, Batch, Step]:
    """A system that has crafted its first batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = recipe.setup(cnn(norm=False), data, Rows.count(0, len(data)))
    for part in system.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    nn.init.normal_(system.model.head.weight, generator=torch.Generator().manual_seed(1))
    batch = data.batch(ids)
    step = step_of(batch)
    return system.train(), recipe.craft(system, batch, step), step


def test_cgat_is_its_loss_and_the_pull_to_the_centre_after_the_batch_came_in() -> None:
    data = images(24)
    recipe = parse(f"cgat(attack={PGD}, loss=hashnet, bits={K}, lam=0.7)", "recipe")
    system, batch, step = begun(recipe, data, [5, 3, 20])
    every = data.batch(range(24))
    with torch.no_grad():
        u = system.model(every.x)
    assert torch.allclose(system.bank.u, u, atol=1e-6)
    assert torch.equal(system.bank.b, sign(u))
    codes, y = sign(u), torch.nn.functional.one_hot(every.y, 3).float()  # type: ignore[arg-type]
    rows = [5, 3, 20]

    def value(x: Tensor, code: Tensor) -> Tensor:
        with torch.no_grad():
            return (system.model(x) * code).mean(1)

    first = centre_codes(y[rows], codes, y)
    assert bool((value(batch.extra["adversarial"], first) < value(batch.x, first)).all())
    assert float((batch.extra["adversarial"] - batch.x).abs().max()) <= 0.1 + 1e-6

    system.model.head.bias.data.add_(1.5)  # what enters the bank differs from what was there
    found = recipe.learn(system, batch, step)
    with torch.no_grad():
        now, moved = system.model(batch.x), system.model(batch.extra["adversarial"])
    fresh = u.clone()
    fresh[rows] = now
    after = centre_codes(y[rows], sign(fresh), y)
    assert not torch.equal(sign(fresh), codes)

    class Held:
        u, y = fresh, torch.nn.functional.one_hot(every.y, 3).float()  # type: ignore[arg-type]

    natural = parse("hashnet", "hashing_loss")(now, y[rows], Held, None)
    assert float(found.detach()) == pytest.approx(float(natural - 0.7 * (moved * after).mean()), rel=1e-5)
    assert torch.allclose(system.bank.u, fresh, atol=1e-6)


def test_atrdh_is_its_loss_on_both_kinds_and_draws_to_other_centres() -> None:
    data = images(24)
    recipe = parse(f"atrdh(attack={PGD}, loss=dph, bits={K})", "recipe")
    system, batch, step = begun(recipe, data, list(range(12)))
    found = float(recipe.learn(system, batch, step).detach())
    loss = parse("dph", "hashing_loss")
    with torch.no_grad():
        each = [loss(system.model(z), batch.y, system.bank, None) for z in (batch.x, batch.extra["adversarial"])]
    assert found == pytest.approx(float(sum(each)), rel=1e-5)
    wanted = system.bank.y[step.rows.integers((), 0, 24, "target")]
    code = system.bank.centres(wanted, "jaccard")
    with torch.no_grad():
        before, after = ((system.model(z) * code).mean() for z in (batch.x, batch.extra["adversarial"]))
    assert float(after) > float(before)


def test_without_its_weight_cgat_is_hashing() -> None:
    data = images(24)
    trainer = Trainer(epochs=2, batch=8, optimizer=SGD(0.05), accelerator="cpu")
    one, two = (
        trainer.fit(parse(text, "recipe"), cnn(), data).last
        for text in (f"cgat(attack={PGD}, bits={K}, lam=0.0)", f"hashing(bits={K})")
    )
    assert same(one, two)
    three = trainer.fit(parse(f"cgat(attack={PGD}, bits={K})", "recipe"), cnn(), data).last
    assert not same(one, three)


def test_the_bank_goes_by_identity_and_keeps_reals_and_codes_apart() -> None:
    data = images(24).subset([20, 4, 11, 7])
    recipe = parse(f"hashing(loss=dpsh, bits={K})", "recipe")
    system, _, _ = begun(recipe, data, [0, 1])
    bank = system.bank
    batch = Batch(torch.zeros(2, 1, 8, 8), None, torch.tensor([7, 20]))
    bank.write(batch, torch.full((2, K), -0.25, requires_grad=True))
    assert bank.places(batch).tolist() == [3, 0]
    assert bool((bank.u[[3, 0]] == -0.25).all())
    assert bool((bank.b[[3, 0]] == -1).all())
    assert bank.u.data_ptr() != bank.b.data_ptr()
    assert not bank.u.requires_grad
    assert not bool((bank.u[[1, 2]] == -0.25).any())
    assert "bank.u" in system.state_dict()
    bank.fill(system.model)  # once is enough
    assert bool((bank.u[3] == -0.25).all())


def test_bank_and_attack_see_the_model_in_eval_mode_and_the_update_in_train_mode() -> None:
    data = images(24)
    recipe = parse(f"cgat(attack={PGD}, loss=hashnet, bits={K})", "recipe")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system: Any = recipe.setup(cnn(), data, Rows.count(0, 24)).train()
    seen: list[bool] = []
    norm = next(m for m in system.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda part, _args, _out: seen.append(part.training))
    before = norm.num_batches_tracked.clone()  # type: ignore[operator]
    batch = data.batch(range(8))
    step = step_of(batch)
    crafted = recipe.craft(system, batch, step)
    assert len(seen) >= 4
    assert not any(seen)
    assert torch.equal(norm.num_batches_tracked, before)  # type: ignore[arg-type]
    assert system.training
    assert norm.training
    with torch.no_grad():
        u = copy.deepcopy(system.model).eval()(data.batch(range(24)).x)
    assert torch.allclose(system.bank.u, u, atol=1e-6)
    seen.clear()
    recipe.learn(system, crafted, step)
    assert seen == [True, True]


@pytest.mark.parametrize("name", ["cgat", "atrdh"])
def test_an_attack_that_runs_in_parts_for_want_of_memory_keeps_each_example_its_code(name) -> None:
    data = images(24)
    recipe = parse(f"{name}(attack={PGD}, loss=hashnet, bits={K})", "recipe")
    system, whole, step = begun(recipe, data, list(range(10)))

    def full(_part: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > 5:
            raise torch.OutOfMemoryError("too much")

    handle = system.model.register_forward_pre_hook(full)
    parts = recipe.craft(system, data.batch(range(10)), step)
    handle.remove()
    assert torch.allclose(parts.extra["adversarial"], whole.extra["adversarial"], atol=1e-5)


def test_losses_and_the_tanh_are_taken_in_single_precision_whatever_the_training_is(monkeypatch) -> None:
    seen: list[tuple[torch.dtype, bool]] = []
    csq: Any = type(parse("csq", "hashing_loss"))
    own = csq.__call__

    def noted(self: Any, u: Tensor, *rest: Any) -> Tensor:
        seen.append((u.dtype, torch.is_autocast_enabled("cpu")))
        return own(self, u, *rest)

    monkeypatch.setattr(csq, "__call__", noted)
    trainer = Trainer(epochs=1, batch=8, accelerator="cpu", precision="bf16-mixed")
    trainer.fit(parse(f"atrdh(attack={PGD}, bits={K})", "recipe"), cnn(), images(24))
    assert set(seen) == {(torch.float32, False)}
    held = Hasher(nn.Flatten(), 4, 2)
    nn.init.ones_(held.head.weight)
    x = torch.full((1, 1, 2, 2), 1.5, requires_grad=True)  # F(x) = 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u = held(x)
    assert float(u.detach().max()) < 1
    (gradient,) = torch.autograd.grad(u.sum(), x)
    assert float(gradient.abs().min()) > 0
    soft = CodeProduct(held, lambda y, rows: y, True, alpha=1.0)
    reals = torch.full((1, 2), 6.0, dtype=torch.bfloat16)
    assert float(soft.soft(Seen(x, u.detach(), {"head": reals})).max()) < 1


def test_what_stands_around_a_hashing_model_stays() -> None:
    data = images(24)
    inner = parse(f"hashing(bits={K})", "recipe").deploy(cnn(), data.space)
    given = Normalised(inner, (0.5,), (0.1,)).eval()
    system: Any = parse(f"cgat(attack={PGD})", "recipe").setup(given, data, Rows.count(0, 24))
    x = data.batch(range(4)).x
    with torch.no_grad():
        assert torch.equal(system.model.eval()(x), given(x))
        assert not torch.allclose(inner.eval()(x), given(x), atol=1e-2)
    plain = parse(f"cgat(attack={PGD})", "recipe").deploy(Logits(inner), data.space)
    assert isinstance(plain, Hasher)


def test_an_attack_on_codes_that_needs_no_database_judges_as_it_is(monkeypatch) -> None:
    data = images(24)
    recipe = parse(f"hashing(bits={K})", "recipe")
    model = recipe.deploy(cnn(), data.space).eval()
    monkeypatch.setattr(CgA, "run", lambda *_args, **_more: pytest.fail("another attack was asked"))
    assert "robust_map" in recipe.validate(model, data, parse("hag(linf(0.2), steps=2)", "attack"), "cpu", 0)


def test_the_best_epoch_of_a_defence_of_codes_is_that_of_the_highest_map_under_attack() -> None:
    for text, robust in ((f"cgat(attack={PGD}, bits={K})", True), (f"hashing(bits={K})", False)):
        made = harden(cnn(), images(48), text, epochs=2, batch=8, validation=0.25, accelerator="cpu")
        assert all(("robust_map" in row) == robust for row in made.history)
        scores = [row["robust_map" if robust else "map"] for row in made.history]
        assert made.fitted.best_epoch == 1 + scores.index(max(scores))


def test_dsdh_finds_its_classifier_once_an_epoch() -> None:
    recipe = parse(f"hashing(loss=dsdh, bits={K})", "recipe")
    system, batch, step = begun(recipe, images(24), list(range(8)))
    first = system.own.W.clone()
    assert float(first.abs().sum()) > 0
    system.bank.u.neg_()
    system.bank.b.neg_()
    recipe.craft(system, batch, replace(step, step=1))
    assert torch.equal(system.own.W, first)
    recipe.craft(system, batch, replace(step, step=3))
    assert not torch.equal(system.own.W, first)


def test_map_leaves_each_query_out() -> None:
    data = images(30)
    recipe = parse(f"hashing(bits={K})", "recipe")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = recipe.deploy(cnn(), data.space).eval()
        nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    batch = data.batch(range(30))
    with torch.no_grad():  # bits that divide the images
        model.head.bias -= model.head(model.backbone(batch.x)).mean(0)  # type: ignore[operator]
    codes = model.codes(batch.x)  # type: ignore[operator]
    precisions = []
    for q in range(30):
        others = [i for i in range(30) if i != q]
        ranked = sorted(others, key=lambda i: int((codes[i] != codes[q]).sum()))
        hits, found = 0, []
        for place, i in enumerate(ranked, 1):
            if batch.y[i] == batch.y[q]:  # type: ignore[index]
                hits += 1
                found.append(hits / place)
        precisions.append(sum(found) / len(found))
    measured = recipe.validate(model, data, None, "cpu", 0)
    assert measured == {"map": pytest.approx(sum(precisions) / 30, rel=1e-9)}
    for judge in ("pgd(linf(0.5), steps=20)", "hag(linf(0.5), steps=20)", "cga(linf(0.5), steps=20)"):
        attacked = recipe.validate(model, data, parse(judge, "attack"), "cpu", 0)
        assert attacked["map"] == measured["map"]
        assert attacked["robust_map"] < measured["map"]


@pytest.mark.parametrize("loss", ["csq", "hashnet", "dpsh", "dch", "greedyhash", "dph", "dsdh"])
def test_every_loss_makes_codes_that_find_their_class(loss) -> None:
    data = images(60)
    recipe = parse(f"hashing(loss={loss}, bits={K})", "recipe")
    trainer = Trainer(epochs=30, batch=20, optimizer="adam(1e-2)", schedule="constant", accelerator="cpu")
    fitted = trainer.fit(recipe, cnn(), data, validation=images(30))
    assert isinstance(fitted.model, Hasher)
    assert max(row["map"] for row in fitted.history) > 0.8


def test_images_of_several_labels_are_learned_from() -> None:
    many = images(24)
    batch = many.batch(range(24))
    y = torch.nn.functional.one_hot(batch.y, 3).bool()  # type: ignore[arg-type]
    y[::4, 0] = True
    data = from_arrays(batch.x.numpy(), y.numpy(), name="many")
    made = harden(cnn(), data, f"cgat(attack={PGD}, loss=hashnet, bits={K})", epochs=2, batch=8, accelerator="cpu")
    assert made.task == "hashing"
    assert {"map", "loss_hashing", "loss_adversarial"} <= made.history[-1].keys()


def test_mixed_labels_are_refused() -> None:
    with pytest.raises(BadInput, match="zeros and ones"):
        harden(
            cnn(),
            images(24),
            f"hashing(bits={K})",
            epochs=1,
            batch=8,
            augment="mixup",
            accelerator="cpu",
            validation=None,
        )


def test_a_hashing_model_keeps_its_bits() -> None:
    data = images(24)
    first = parse(f"hashing(bits={K})", "recipe").deploy(cnn(), data.space)
    held = parse(f"cgat(attack={PGD})", "recipe").deploy(first, data.space)
    assert isinstance(held, Hasher)
    assert held.bits == K
    assert held is not first
    assert hasher_in(nn.Sequential(first))[0] == "0"  # type: ignore[index]
    with pytest.raises(BadInput, match="those of the model"):
        parse("hashing(bits=4)", "recipe").deploy(first, data.space)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hashing(bits=0)", "bits"),
        ("hashing(loss=pgd)", "loss"),
        ("cgat(lam=-1.0)", "lam"),
        ("cgat(attack=deepfool)", "takes an objective"),
        ("cgat(weights='indicator')", "weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(text, told) -> None:
    with pytest.raises(BadInput, match=told):
        parse(text, "recipe")
