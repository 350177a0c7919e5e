"""AdvKNN: the block that learns to tell votes, and the attack through it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import withstand as ws
from tests.attacks.neighbours.conftest import blobs, fitted, network
from tests.training.conftest import same
from withstand.attacks.engine.outputs import see
from withstand.attacks.fit import fit_attack, load_fitted
from withstand.attacks.neighbours.advknn import AdvKNN, AwayFromVotes
from withstand.attacks.neighbours.block import FitBlock, KNNBlock, disagreement, divergence, fidelity
from withstand.attacks.neighbours.origin import BackboneCrossEntropy, Origin
from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.hardening.harden import harden
from withstand.models import HiddenKNN, as_target
from withstand.protocols import Batch, Seen
from withstand.registry import parse


def seen_at(model: HiddenKNN, x: torch.Tensor) -> Seen:
    return see(model, x, [f"{kind}.{i}" for kind in ("ballots", ">features") for i in range(len(model.layers))])


def votes_of(model: HiddenKNN, x: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(model.votes(x).values()), 1)


# The block ---------------------------------------------------------------------------------------------------------


def test_the_block_learns_to_tell_the_votes(knn, block, batch):
    before = KNNBlock(3, knn.sizes)
    assert fidelity(before, knn, batch[0])["divergence"] > 0.5
    after = fidelity(block, knn, batch[0])
    assert after["agreement"] > 0.9
    assert after["divergence"] < 0.1


def test_consistency_learning_tells_how_sure_the_votes_are(references, batch):
    x, y = references
    noisy = torch.where(torch.arange(len(y)) % 3 == 0, (y + 1) % 3, y)  # a third of the votes goes elsewhere
    unsure = HiddenKNN(network(), ["4"], x, noisy, k=15, classes=3)
    told = {terms: fidelity(fitted(unsure, FitBlock(terms)).last, unsure, batch[0]) for terms in ("ce", "kl")}
    assert told["kl"]["divergence"] < told["ce"]["divergence"] / 3


def test_fidelity_is_what_it_says(deep, deep_block, batch):
    x = batch[0]
    with torch.no_grad():
        logits = deep_block([seen_at(deep, x).features[f">features.{i}"] for i in range(3)])
    p, q = votes_of(deep, x), logits.softmax(2)
    expected = [
        sum(float(a * (a / b).log()) for a, b in zip(p[i, layer], q[i, layer]) if a > 0)
        for i in range(len(x))
        for layer in range(3)
    ]
    said = fidelity(deep_block, as_target(deep), x)
    assert said["divergence"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert said["agreement"] == pytest.approx(float((p.argmax(2) == q.argmax(2)).float().mean()))


def test_each_layer_has_its_own_linear_map_of_the_raw_activation(deep, deep_block, batch):
    seen = seen_at(deep, batch[0])
    parts = [seen.features[f">features.{i}"] for i in range(3)]
    told = deep_block(parts)
    assert deep_block.sizes.tolist() == [12, 8, 3]
    for i, weight in enumerate(deep_block.weight.split([12, 8, 3])):
        assert torch.allclose(told[:, i], parts[i] @ weight + deep_block.bias[i], atol=1e-5)
    assert torch.allclose(parts[0], network()[:3](batch[0]))


def test_the_loss_is_the_divergence_and_the_weighted_cross_entropy(deep):
    p, logits = votes_of(deep, blobs(5, 4)[0]), torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0))
    kl = F.kl_div(logits.log_softmax(2), p, reduction="none").sum(2)
    ce = F.cross_entropy(logits.flatten(0, 1), p.argmax(2).flatten(), reduction="none").view(5, 3)
    assert torch.allclose(divergence(logits, p), kl, atol=1e-6)
    assert torch.allclose(disagreement(logits, p), ce)

    class Fixed:
        block = staticmethod(lambda parts: logits)
        say = staticmethod(lambda name, value: None)

    batch = Batch(torch.zeros(5), extra={"votes": p, **{f"activation_{i}": torch.zeros(5, 1) for i in range(3)}})
    for recipe, expected in [
        (FitBlock(), kl + 0.3 * ce),
        (FitBlock("kl"), kl),
        (FitBlock("ce"), ce),
        (FitBlock(ce_weight=2.0), kl + 2 * ce),
    ]:
        assert recipe.loss(Fixed, batch, Fixed) == pytest.approx(float(expected.sum(1).mean()))  # type: ignore[arg-type]
    one = Batch(torch.zeros(5), extra={"votes": p[:, :1], "activation_0": torch.zeros(5, 1)})
    Fixed.block = staticmethod(lambda parts: logits[:, :1])
    assert FitBlock().loss(Fixed, one, Fixed) == pytest.approx(float((kl + 20 * ce)[:, 0].mean()))  # type: ignore[arg-type]


def test_references_do_not_vote_for_themselves(references):
    x, y = references
    lonely = HiddenKNN(network(), ["4"], x, y, k=1, classes=3)
    data, recipe = from_arrays(x, y, classes=3), FitBlock()
    system = recipe.setup(lonely, data, ws.Rows.count(0, len(x)))
    some = data.batch(range(60))
    with torch.no_grad():
        crafted = recipe.craft(system, some, None)  # type: ignore[arg-type]
    assert torch.equal(crafted.extra["votes"][:, 0], lonely.votes(some.x, torch.arange(60))["4"])
    assert not torch.equal(crafted.extra["votes"][:, 0], lonely.votes(some.x)["4"])


def test_fidelity_does_not_count_what_references_say_of_themselves(references):
    x, y = references
    lonely = HiddenKNN(network(), ["4"], x, y, k=1, classes=3)
    block = fitted(lonely, epochs=2).last
    told = (network()[:5](x) @ block.weight + block.bias[0]).log_softmax(1)
    others = lonely.votes(x, torch.arange(len(x)))["4"]
    said = fidelity(block, lonely, x)
    assert said["divergence"] == pytest.approx(F.nll_loss(told, others.argmax(1)).item(), abs=1e-5)
    assert said["agreement"] == pytest.approx(float((told.argmax(1) == others.argmax(1)).float().mean()))
    assert not torch.equal(others.argmax(1), y)


def test_fitting_leaves_the_classifier_alone_and_resumes_bit_for_bit(knn, tmp_path, monkeypatch):
    given = copy.deepcopy(knn)
    whole = fitted(knn, epochs=3)
    assert same(knn, given)
    assert "divergence" in whole.history[-1]
    calls, loss = [], FitBlock.loss

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(self, *args)

    monkeypatch.setattr(FitBlock, "loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        fitted(knn, epochs=3, out=tmp_path)
    monkeypatch.setattr(FitBlock, "loss", loss)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < 30_000  # the references are not in there
    assert same(fitted(knn, epochs=3, out=tmp_path).last, whole.last)


def test_a_kept_block_is_the_same_and_needs_no_classifier_to_load(knn, tmp_path, batch):
    data = from_arrays(*blobs(60, 0), classes=3)
    found = fit_attack("knn_block('kl')", knn, data, out=tmp_path, epochs=2, batch=20, accelerator="cpu")
    assert same(load_fitted(f"artefact:{tmp_path}", "block"), found.module)
    x, y = batch
    live, kept = (AdvKNN(ws.Linf(0.2), block=b, steps=3)(knn, x, y) for b in (found, f"artefact:{tmp_path}"))
    assert torch.equal(live, kept)


# The attack --------------------------------------------------------------------------------------------------------


def test_the_attack_beats_noise_and_is_judged_by_the_real_votes(knn, block, batch):
    x, y = batch
    assert (knn.predict(x) == y).float().mean() > 0.9
    r = AdvKNN(ws.Linf(0.2), block=block, steps=20, step=0.1).run(knn, x, y)
    assert torch.equal(r.success, knn.predict(r.x_adv) != y)
    noise = x + 0.2 * torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    assert (knn.predict(noise.clamp(0, 1)) == y).float().mean() > (~r.success).float().mean() + 0.3


def test_several_layers_are_attacked_together(deep, deep_block, batch):
    x, y = batch
    r = AdvKNN(ws.Linf(0.2), block=deep_block, steps=20, step=0.1).run(deep, x, y)
    assert torch.equal(r.success, deep.predict(r.x_adv) != y)
    assert r.success.float().mean() > 0.4


@pytest.mark.parametrize("variant", ["correct", "published"])
def test_layers_are_paired_with_their_own_votes_at_the_clean_point_or_as_published(deep, deep_block, batch, variant):
    x, y = batch
    objective = AwayFromVotes(deep_block, kl_weight=0.7, ce_weight=2.0, variant=variant)
    layers = deep.layers if variant == "correct" else deep.layers[::-1]
    state = objective.begin(seen_at(deep, x), y, ws.Rows.count(0, len(x)))
    moved = blobs(len(x), 5)[0]
    seen = seen_at(deep, moved)
    expected = torch.zeros(len(x))
    for i, (layer, weight) in enumerate(zip(layers, deep_block.weight.split(deep.sizes))):
        q = (seen.features[f">features.{i}"] @ weight + deep_block.bias[i]).log_softmax(1)
        p = deep.votes(x)[layer]
        assert not torch.equal(p, deep.votes(moved)[layer])
        expected = expected + 0.7 * F.kl_div(q, p, reduction="none").sum(1)
        expected = expected + 2 * F.nll_loss(q, p.argmax(1), reduction="none")
    assert torch.allclose(objective(seen, y, state), expected, atol=1e-4)


def test_the_attack_passes_its_variant_on(deep, deep_block, batch):
    made = [AdvKNN(ws.Linf(0.2), deep_block, steps=3, variant=v)(deep, *batch) for v in ("correct", "published")]
    assert not torch.equal(*made)


def test_two_steps_are_those_of_the_sheet(knn, block, batch):
    x, y = batch
    p, z = knn.votes(x)["4"], x.clone()
    for _ in range(2):
        z.requires_grad_(True)
        q = (network()[:5](z) @ block.weight + block.bias[0]).log_softmax(1)
        loss = F.kl_div(q, p, reduction="sum") + 20 * F.nll_loss(q, p.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        z = (x + (z.detach() + 0.15 * gradient.sign() - x).clamp(-0.2, 0.2)).clamp(0, 1)
    found = AdvKNN(ws.Linf(0.2), block=block, steps=2, step=0.75, keep="last", active=False)(knn, x, y)
    assert torch.allclose(found, z, atol=1e-6)


def test_a_perfect_block_has_no_divergence_and_no_gradient_of_it():
    z = torch.randn(4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = z.detach().softmax(2)
    value = divergence(z, p)
    assert torch.allclose(value, torch.zeros_like(value), atol=1e-12)
    assert torch.autograd.grad(value.sum(), z)[0].abs().max() < 1e-12
    step = 1e-5 * torch.randn(4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert (divergence(z.detach() + step, p) < 1e-9).all()


def test_without_the_divergence_one_full_step_is_fgsm_through_the_block(knn, block, batch):
    x, y = batch
    one = {"block": block, "steps": 1, "step": 1.0, "keep": "last", "active": False}
    found = AdvKNN(ws.Linf(0.1), **one, kl_weight=0.0)(knn, x, y)
    point = x.clone().requires_grad_()
    logits = network()[:5](point) @ block.weight + block.bias[0]
    loss = F.cross_entropy(logits, knn.votes(x)["4"].argmax(1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    assert torch.allclose(found, (x + 0.1 * gradient.sign()).clamp(0, 1), atol=1e-6)
    assert torch.allclose(found, AdvKNN(ws.Linf(0.1), **one, ce_weight=1e6)(knn, x, y), atol=1e-6)


def test_no_radius_is_no_change(knn, block, batch):
    x, y = batch
    assert torch.equal(AdvKNN(ws.Linf(0.0), block=block, steps=3)(knn, x, y), x)
    assert torch.equal(Origin(ws.Linf(0.0), steps=3)(knn, x, y), x)


def test_origin_is_pgd_on_the_network_judged_by_the_votes(knn, batch):
    x, y = batch
    settings = {"steps": 5, "step": 0.3, "keep": "last", "active": False, "random_start": False}
    found = Origin(ws.Linf(0.1), **settings)(knn, x, y)
    assert torch.allclose(found, ws.attacks.PGD(ws.Linf(0.1), **settings)(network(), x, y))
    r = Origin(ws.Linf(0.2), steps=10).run(knn, x, y)
    assert torch.equal(r.success, knn.predict(r.x_adv) != y)


def test_targets_and_modules_are_attacked_alike(knn, block, batch):
    x, y = batch
    for attack in (AdvKNN(ws.Linf(0.1), block=block, steps=2), Origin(ws.Linf(0.1), steps=2)):
        assert torch.equal(attack(knn, x, y), attack(as_target(knn), x, y))


# What is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_attacked_is_refused(knn, deep, block, batch, tmp_path):
    x, y = batch
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    two = HiddenKNN(nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.ReLU()), ["1"], *blobs(20, 0), classes=3)
    data = from_arrays(x, y, classes=3)
    (tmp_path / "artefact.json").write_text('{"kind": "generator"}')
    for make, said in [
        (lambda: AdvKNN()(knn, x, y), "block: got none"),
        (lambda: AdvKNN(block=block)(plain, x, y), "a kNN classifier"),
        (lambda: Origin()(plain, x, y), "a kNN classifier"),
        (lambda: Origin()(two, x, y), "a backbone that returns 2 values; allowed: 3"),
        (lambda: AdvKNN(block=block)(deep, x, y), "a block of 8 -> 3; allowed: one of 12 -> 3, 8 -> 3, 3 -> 3"),
        (lambda: AdvKNN(block=plain), "what the recipe knn_block makes"),
        (lambda: AdvKNN(block="artefact:nowhere")(knn, x, y), "a folder with"),
        (lambda: AdvKNN(block=f"artefact:{tmp_path}")(knn, x, y), "holds a generator"),
        (lambda: AdvKNN(block=block, steps=0), "steps"),
        (lambda: AdvKNN(block=block, step=0.0), "step"),
        (lambda: AdvKNN(block=block, ce_weight=-1.0), "ce_weight"),
        (lambda: AdvKNN(block=block, kl_weight=float("nan")), "kl_weight"),
        (lambda: AdvKNN(parse("l2()", "threat"), block=block), "threat"),
        (lambda: AdvKNN(block=block)(knn, x * 9, y), "normalisation"),
        (lambda: FitBlock(terms="mse"), "terms"),  # type: ignore[arg-type]
        (lambda: FitBlock(ce_weight=-1.0), "ce_weight"),
        (lambda: fit_attack("knn_block", plain, data), "a kNN classifier"),
        (lambda: harden(knn, data, "knn_block"), "fit-attack"),
    ]:
        with pytest.raises(BadInput, match=said):
            make()


def test_settings_can_be_written_and_read_back():
    for text in ("advknn(linf(0.1), block='artefact:runs/block', ce_weight=1.0)", "origin(linf(0.1), steps=3)"):
        assert repr(parse(text, "attack")) == text
    assert repr(parse("knn_block('ce')", "recipe")) == "knn_block('ce')"
    assert parse("origin", "attack").objective == BackboneCrossEntropy()
