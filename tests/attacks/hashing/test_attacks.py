"""Attacks on hashing models against loops written by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.hashing.conftest import BITS, CLASSES
from withstand.attacks.fit import fit_attack
from withstand.attacks.hashing.aim import ALPHAS, CodeProduct, alpha_at, counted
from withstand.attacks.hashing.centres import centre_codes, sign
from withstand.attacks.hashing.cga import CgA
from withstand.attacks.hashing.database import Database, resolve
from withstand.attacks.hashing.dhta import DHTA, P2P, anchor_codes
from withstand.attacks.hashing.hag import HAG, hag_loss
from withstand.attacks.hashing.sdha import SDHA, farness
from withstand.attacks.hashing.tha import THA, PrototypeNet, Prototypes, prototype_loss
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput
from withstand.models import as_target
from withstand.models.target import TorchTarget
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.threats import Linf


def by_hand(model: Any, x: Tensor, code: Tensor, away: bool, eps: float, steps: int, step: float) -> Tensor:
    """Sign steps on mean u . code from x on."""
    z = x.clone()
    for _ in range(steps):
        z = z.detach().requires_grad_(True)
        value = (model(z) * code).mean(1).sum()
        (g,) = torch.autograd.grad(value, z)
        z = z - step * eps * g.sign() if away else z + step * eps * g.sign()
        z = torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)
    return z.detach()


def far(model: Any, x: Tensor, code: Tensor) -> Tensor:
    with torch.no_grad():
        return (BITS - (sign(model(x)) * code).sum(1)) / 2


def test_cga_takes_the_steps_of_the_official_loop(model, queries, base) -> None:
    x, y = queries
    code = centre_codes(y, base.codes, base.labels).double()
    attack = CgA(Linf(0.1), steps=4, step=0.3, random_start=False, database=base, keep="last", active=False)
    assert torch.allclose(attack(model, x, y), by_hand(model, x, code, True, 0.1, 4, 0.3), atol=1e-9)


def test_the_kept_point_of_cga_is_never_nearer_to_the_centre(model, queries, base) -> None:
    x, y = queries
    for weights in ("jaccard", "published"):
        code = centre_codes(y, base.codes, base.labels, weights).double()  # type: ignore[arg-type]
        z = CgA(Linf(0.1), steps=20, database=base, weights=weights)(model, x, y)  # type: ignore[arg-type]
        assert bool((far(model, z, code) >= far(model, x, code)).all())
        assert float(far(model, z, code).mean()) > float(far(model, x, code).mean()) + 1


def test_labels_may_be_class_indices(model, queries, base) -> None:
    x, _ = queries
    y = torch.arange(12) % CLASSES
    attack = CgA(Linf(0.1), steps=3, database=base)
    assert torch.equal(attack(model, x, y), attack(model, x, torch.eye(CLASSES)[y]))


def test_dhta_draws_to_its_anchor(model, queries, base) -> None:
    x, y = queries
    attack = DHTA(Linf(0.1), steps=4, step=0.3, target=1, anchors=100, database=base, keep="last", active=False)
    alone = (base.labels == torch.eye(CLASSES)[1]).all(1)
    assert 0 < int(alone.sum()) < int((base.labels[:, 1] > 0).sum())
    code = base.codes[alone].sum(0).sign().double().expand(12, -1)  # all items of the class and of no other
    assert torch.allclose(attack(model, x, y), by_hand(model, x, code, False, 0.1, 4, 0.3), atol=1e-9)


def test_anchors_are_sums_of_items_with_just_the_wanted_labels_or_else_of_those_that_share_one(base) -> None:
    both = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    for labels in (base.labels, base.labels[(base.labels != both).any(1)]):
        codes = base.codes[: len(labels)]
        exact = (labels == both).all(1)
        items = codes[exact if bool(exact.any()) else (labels @ both[0]) > 0]
        assert torch.equal(anchor_codes(both, labels, codes, 100, Rows.count(0, 1))[0], items.sum(0).sign())
    wanted = torch.eye(CLASSES)[[0, 1, 2, 3] * 5]
    rows = Rows.count(0, len(wanted))
    one = anchor_codes(wanted, base.labels, base.codes, 1, rows)
    for code, y in zip(one, wanted):
        items = base.codes[(base.labels == y).all(1)]
        assert bool((items == code).all(1).any())
    assert len(one[::4].unique(dim=0)) > 1  # drawn for each query
    three = anchor_codes(wanted, base.labels, base.codes, 3, rows)
    assert bool((three[::4] != 0).all())  # the class has three items of its own


def test_targets_share_no_label_with_the_query(queries, base) -> None:
    _, y = queries
    attack = P2P(database=base)
    wanted = attack.targets_of(y, seed=3)
    assert bool(((wanted * y).sum(1) == 0).all())
    assert bool((wanted.sum(1) > 0).all())
    assert all(bool((base.labels == w).all(1).any()) for w in wanted)
    rows = torch.tensor([4, 1])
    assert torch.equal(attack.targets_of(y[rows], 3, rows), wanted[rows])
    with pytest.raises(BadInput, match="no database item"):
        P2P(database=base, target=CLASSES + 1).targets_of(y)
    with pytest.raises(BadInput, match="share a label with every query"):
        attack.targets_of(torch.ones(1, CLASSES))
    with pytest.raises(BadInput, match="one for each of 12"):
        P2P(database=base, target=torch.tensor([0, 1])).targets_of(y)


def test_hag_loss_counts_bits_that_have_not_flipped_far_enough() -> None:
    g = torch.Generator().manual_seed(0)
    u, clean = torch.tanh(torch.randn(6, 5, generator=g) * 2), torch.tanh(torch.randn(6, 5, generator=g))
    for row, h, found in zip(u.tolist(), clean.tolist(), hag_loss(u, clean, 0.5).tolist()):
        kept = [(a, b) for a, b in zip(row, h) if abs(a - (1 if b >= 0 else -1)) < 1.5]
        expected = (sum(a * b for a, b in kept) / len(kept) + 1) ** 2 if kept else 0.0
        assert found == pytest.approx(expected, rel=1e-5)
    assert float(hag_loss(-sign(clean), clean)[0]) == 0


def test_hag_turns_bits_over_and_alpha_grows(model, queries) -> None:
    x, _ = queries
    with torch.no_grad():
        code = sign(model(x))
    moved = HAG(Linf(0.1), steps=20)(model, x)
    assert float(far(model, moved, code).mean()) > 0.5
    assert [alpha_at(s / 20) for s in (0, 9, 10, 13, 15, 17, 19)] == [0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    assert ALPHAS[-1] == (1.0, 1.0)


def test_hag_takes_the_steps_of_a_loop_in_which_alpha_grows(model, queries) -> None:
    x, _ = queries
    with torch.no_grad():
        clean = model(x)
    z = x.clone()
    for alpha in (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0):
        z = z.detach().requires_grad_(True)
        u = torch.tanh(alpha * model.head(model.backbone(z)))
        (g,) = torch.autograd.grad(hag_loss(u, clean).sum(), z)
        z = torch.minimum(torch.maximum(z - 0.02 * g.sign(), x - 0.1), x + 0.1).clamp(0, 1)
    attack = HAG(Linf(0.1), steps=10, step=0.2, random_start=False, keep="last", active=False)
    assert torch.allclose(attack(model, x), z.detach(), atol=1e-9)


def test_a_saturated_tanh_hides_the_gradient_that_alpha_shows() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :BITS] * 60

    from withstand.models.hashing import Hasher

    held = Hasher(Steep(), BITS, BITS)
    held.head.weight.data.copy_(torch.eye(BITS))
    x = 0.5 + Rows.count(0, 4).uniform((1, 4, 4), "x", high=0.2)
    with torch.no_grad():
        code = sign(held(x))
    eased, hard = (
        HAG(Linf(0.02), steps=4, anneal=a, random_start=False, keep="last", active=False) for a in (True, False)
    )
    assert torch.equal(hard(held, x), x)
    assert not torch.equal(eased(held, x), x)
    assert bool((code == 1).all())


def test_alpha_softens_the_reals_with_and_without_a_hasher(model, queries) -> None:
    x, _ = queries
    seen = Seen(x, model(x), {"head": model.head(model.backbone(x))})
    with_head = CodeProduct(model, lambda y, rows: y, True, alpha=0.3)
    assert with_head.reads == ("logits", "head")
    without = CodeProduct(lambda v: model(v), lambda y, rows: y, True, alpha=0.3)
    assert without.reads == ("logits",)
    expected = torch.tanh(0.3 * seen.features["head"])
    assert torch.allclose(with_head.soft(seen), expected)
    assert torch.allclose(without.soft(seen), expected, atol=1e-4)
    assert torch.equal(CodeProduct(model, lambda y, rows: y, True).soft(seen), seen.logits)
    inner = nn.Sequential(model)
    assert CodeProduct(inner, lambda y, rows: y, True, alpha=0.3).reads == ("logits", "0.head")


def test_points_are_ordered_by_bits_first_and_outputs_second() -> None:
    code = torch.tensor([[1.0, 1.0, -1.0]])
    weak, strong, more = (torch.tensor([v]) for v in ([0.1, 0.1, 0.1], [0.9, 0.9, 0.1], [0.01, 0.01, -0.01]))
    a, b, c = (float(counted(torch.zeros(1), u, code)) for u in (weak, strong, more))
    assert a < b < c
    u = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    counted((u * code).mean(1), u, code).sum().backward()
    assert torch.allclose(u.grad, code / 3)  # type: ignore[arg-type]


def test_farness_is_a_sum_over_bits() -> None:
    g = torch.Generator().manual_seed(1)
    u, codes = torch.tanh(torch.randn(4, 6, generator=g)), sign(torch.randn(3, 6, generator=g))
    u[0] = 0.9 * codes[1]  # less than a bit away
    found = farness(u, codes, 0.5)
    for i, row in enumerate(u.tolist()):
        for j, r in enumerate(codes.tolist()):
            gate = [1 / (1 + math.exp(-5 * a * b)) for a, b in zip(row, r)]
            d = sum(0.5 * abs(a - b) * k + 1 - k for a, b, k in zip(row, r, gate))
            hamming = (6 - sum(a * b for a, b in zip(row, r))) / 2
            assert float(found[i, j]) == pytest.approx(d * max(hamming, 1.0) ** -0.5, rel=1e-5)
    assert torch.allclose(farness(u[:3], codes, 0.5, each=True), found[:3].diagonal(), atol=1e-6)


def test_sdha_leaves_every_relevant_item_and_its_own_code_where_there_is_none(model, queries, base) -> None:
    x, y = queries
    attack = SDHA(Linf(0.1), steps=30, database=base)
    z = attack(model, x, y)
    near = y @ base.labels.T > 0

    def mean(points: Tensor) -> float:
        with torch.no_grad():
            every = (BITS - sign(model(points)) @ base.codes.double().T) / 2
        return float(every[near].mean())

    assert mean(z) > mean(x) + 0.5
    with torch.no_grad():
        own = sign(model(x))
    assert float(far(model, SDHA(Linf(0.1), steps=30)(model, x), own).mean()) > 1
    lonely = Database.of(base.codes, torch.cat([torch.zeros(len(base.codes), CLASSES), base.labels], 1))
    assert torch.equal(SDHA(Linf(0.1), steps=5, database=lonely)(model, x, y), SDHA(Linf(0.1), steps=5)(model, x, y))


def test_sdha_counts_each_relevant_item(model, queries, base) -> None:
    x, y = queries
    found = SDHA(Linf(0.1), steps=3, database=base, lr=1e-3).run(model, x, y)
    with torch.no_grad():
        u = model(found.x_adv)
    near = (y @ base.labels.T > 0).double()
    value = (farness(u, base.codes.double(), 0.5) * near).sum(1) / near.sum(1)
    expected = 25 / BITS * value - (found.x_adv - x).square().flatten(1).mean(1)
    assert torch.allclose(found.value.double(), expected, atol=1e-5)


def test_prototype_loss_is_two_logsumexps() -> None:
    g = torch.Generator().manual_seed(2)
    h, codes = torch.tanh(torch.randn(3, 6, generator=g)), sign(torch.randn(5, 6, generator=g))
    y, labels = torch.eye(3), torch.eye(3)[[0, 1, 2, 0, 1]]
    low, high = 0.0, 0.0
    for i in range(3):
        for j in range(5):
            s = float(h[i] @ codes[j]) / 6
            if int(y[i] @ labels[j]):
                high += math.exp(-(2 - s) * s)
            else:
                low += math.exp((2 + s) * s)
    assert float(prototype_loss(h, y, codes, labels)) == pytest.approx(math.log(low) + math.log(high), rel=1e-5)


def test_prototypes_are_of_label_sets_that_hold_a_label(model, base) -> None:
    y = base.labels.clone()
    y[:3] = 0
    data = from_arrays(Rows.count(5, 30).uniform((1, 8, 8), "x").numpy(), y.numpy() > 0, name="some")
    single: Any = model.float()
    try:
        kinds: Any = Prototypes(bits=BITS, hidden=4, feature=4).setup(single, data, Rows.count(0, 30)).kinds
    finally:
        model.double()
    assert len(kinds) == len(y.unique(dim=0)) - 1
    assert bool((kinds.sum(1) > 0).all())


def test_prototypes_are_learned_kept_and_drawn_to(model, queries, base, tmp_path) -> None:
    x, y = queries
    single = model.float()
    try:
        images = Rows.count(5, 30).uniform((1, 8, 8), "x")
        data = from_arrays(images.numpy(), base.labels.numpy() > 0, name="many")
        target = TorchTarget(single, task="hashing")
        recipe = Prototypes(bits=BITS, hidden=32, feature=16)
        fitted = fit_attack(recipe, target, data, out=tmp_path / "p", epochs=15, batch=10, optimizer="adam(3e-3)")
        assert fitted.kind == "prototypes"
        first, last = (row["loss_pairs"] for row in (fitted.history[0], fitted.history[-1]))
        assert last < first
        with pytest.raises(BadInput, match="number of bits"):
            fit_attack(Prototypes(bits=4), target, data, epochs=1)
        attack = THA(Linf(0.1), steps=20, prototypes=f"artefact:{tmp_path / 'p'}", target=2, database=base)
        z = attack(single, x.float(), y)
        with torch.no_grad():
            code = sign(fitted.module(torch.eye(CLASSES)[[2] * 12]))
        assert float(far(single, z, code).mean()) < float(far(single, x.float(), code).mean()) - 0.5
        with pytest.raises(BadInput, match="network of 3 classes"):
            THA(prototypes=PrototypeNet(3, BITS, 4, 4), database=base)(single, x.float(), y)
        with pytest.raises(BadInput, match="prototypes: got codes of 4 bits"):
            THA(prototypes=PrototypeNet(CLASSES, 4, 4, 4), database=base)(single, x.float(), y)
        with pytest.raises(BadInput, match="fit-attack"):
            THA(database=base)(single, x.float(), y)
    finally:
        model.double()


def test_a_data_set_is_hashed_by_the_attacked_model(model, queries) -> None:
    x, y = queries
    data = from_arrays(x.float().numpy(), y.numpy() > 0, name="queries")
    single = model.float()
    try:
        base = resolve(data, as_target(single), "cga")
        with torch.no_grad():
            assert torch.equal(base.codes, single.codes(x.float()))
        assert torch.equal(base.labels, y)
        assert resolve(data, single, "cga") is not None
        given = CgA(Linf(0.1), steps=3, database=(base.codes, base.labels))
        hashed = CgA(Linf(0.1), steps=3, database=data)
        assert torch.equal(given(single, x.float(), y), hashed(single, x.float(), y))
        named = CgA(Linf(0.1), steps=1, database="digits")(single, x.float(), torch.arange(12) % 10)
        assert named.shape == x.shape
        single.head.weight.data.neg_()
        assert torch.equal(resolve(data, single, "cga").codes, -base.codes)
    finally:
        model.head.weight.data.neg_()
        model.double()
