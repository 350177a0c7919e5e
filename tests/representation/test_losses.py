"""Losses on embeddings against loops over their anchors."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.representation.by_hand import anchors, cbml, multi_similarity, proxy_anchor, unit
from withstand.errors import BadInput
from withstand.registry import entries, from_json, parse, to_json
from withstand.representation.losses import PML, S2SD, CBMLLoss
from withstand.representation.losses.pairs import as_metric_loss

pml = pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("pytorch_metric_learning.losses")
pytest.importorskip("pytorch_metric_learning.miners")

EVEN = torch.arange(4).repeat(5)
RAGGED = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 5, 6])


@pytest.mark.parametrize("labels", [EVEN, RAGGED])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (CBMLLoss(), {}),
        (CBMLLoss("sqrt"), {"kind": "sqrt"}),
        (CBMLLoss("constant"), {"kind": "constant"}),
        (CBMLLoss(var_weight=0.01, reduction_var="mean"), {"w": 0.01, "mean": True}),
        (CBMLLoss(adaptive_neg=False, topk_neg=3), {"top": 3}),
        (CBMLLoss(adaptive_neg=False), {"top": 100}),
        (CBMLLoss(pos=(0.3, 0.2), neg=(0.6, 0.05), margin=0.0, mean_mix=0.7),
         {"pos": (0.3, 0.2), "neg": (0.6, 0.05), "m": 0.0, "g": 0.7}),
    ],
)  # fmt: skip
def test_cbml_is_its_loop_over_anchors(labels, seed, loss, options):
    e = unit(20, 3, seed)
    assert float(loss.build()(e, labels)) == pytest.approx(cbml(e, labels, **options), abs=1e-10)


def test_duplicates_of_the_anchor_are_no_positives_unless_told():
    e = unit(12, 3)
    e[5] = e[1]
    y = torch.arange(4).repeat(3)
    dropped, kept = CBMLLoss().build()(e, y), CBMLLoss(duplicates="keep").build()(e, y)
    assert float(dropped) == pytest.approx(cbml(e, y), abs=1e-10)
    assert float(kept) == pytest.approx(cbml(e, y, drop=False), abs=1e-10)
    assert float(dropped) != pytest.approx(float(kept), abs=1e-3)


def test_the_variance_is_the_spread_of_the_negatives_and_the_gap_of_the_means():
    e, g = unit(20, 3, 4), 0.2
    module = CBMLLoss(margin=3).build()  # keeps every anchor
    module(e, EVEN)
    values = []
    for positive, negative in anchors(e, EVEN):
        p, n = torch.tensor(positive, dtype=torch.float64), torch.tensor(negative, dtype=torch.float64)
        values.append(len(n) * (n.var(correction=0) + g * g * (p.mean() - n.mean()) ** 2))
    assert float(module.stats["variance"]) == pytest.approx(float(torch.stack(values).mean()), abs=1e-10)
    assert float(module.stats["kept"]) == 1


def test_without_the_constraint_the_log_form_is_multi_similarity_without_its_factors():
    e = unit(20, 3, 2)
    found = float(CBMLLoss(pos=(0.5, 0.5), neg=(0.5, 1 / 40), var_weight=0).build()(e, EVEN))
    total = 0.0
    for positive, negative in anchors(e, EVEN):
        p = [s for s in positive if s - 0.1 < max(negative)]
        n = [s for s in negative if s + 0.1 > min(positive)]
        if p and n:
            pull = math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in p)) / 2
            push = math.log(1 + sum(math.exp(40 * (s - 0.5)) for s in n)) / 40
            total += 2 * pull + 40 * push
    assert found == pytest.approx(total / 20, abs=1e-10)


@pytest.mark.parametrize("loss", [CBMLLoss(), CBMLLoss("sqrt", adaptive_neg=False, topk_neg=4), PML()])
def test_the_order_of_the_batch_does_not_matter(loss):
    e, order = unit(20, 4, 3), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    values, gradients = [], []
    for rows in (torch.arange(20), order):
        point = e[rows].clone().requires_grad_(True)
        value = loss.build()(point, RAGGED[rows])
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, point)[0])
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert torch.allclose(gradients[0][order], gradients[1], atol=1e-10)


def clusters(*angles):
    """Unit vectors in the plane at these angles, in degrees."""
    t = torch.tensor(angles, dtype=torch.float64) * math.pi / 180
    return torch.stack([t.cos(), t.sin()], 1)


def test_an_anchor_whose_positives_all_stand_out_adds_nothing_but_counts():
    e, y = clusters(0, 5, 90, 95, 180, 300), torch.tensor([0, 0, 1, 1, 2, 2])
    module = CBMLLoss().build()
    value = module(e, y)
    assert float(value) == pytest.approx(cbml(e, y), abs=1e-10)
    assert float(module.stats["kept"]) == pytest.approx(2 / 6)
    calm = clusters(0, 5, 90, 95).requires_grad_(True)
    value = CBMLLoss().build()(calm, y[:4])
    value.backward()
    assert value.item() == 0
    assert torch.equal(calm.grad, torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["log", "sqrt", "constant"])
def test_cbml_passes_gradcheck(kind):
    module = CBMLLoss(kind, neg=(0.8, 0.1), normalize=True).build()
    e = unit(9, 3, 5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda e: module(e, torch.arange(3).repeat(3)), e)


@pytest.mark.parametrize("labels", [EVEN, RAGGED])
@pytest.mark.parametrize("seed", range(4))
def test_multi_similarity_of_the_library_is_the_papers(labels, seed):
    e = unit(20, 3, seed)
    assert float(PML().build()(e, labels)) == pytest.approx(multi_similarity(e, labels), abs=1e-10)


def test_multi_similarity_is_a_mean_over_the_anchors_that_are_kept():
    e, y = clusters(0, 5, 90, 95, 180, 300), torch.tensor([0, 0, 1, 1, 2, 2])  # of six anchors two are kept
    assert float(PML().build()(e, y)) == pytest.approx(multi_similarity(e, y), abs=1e-10)
    over_all = pml.losses.MultiSimilarityLoss(2, 40, 0.5)
    mined = pml.miners.MultiSimilarityMiner(0.1)(e, y)
    assert float(over_all(e, y, mined)) == pytest.approx(multi_similarity(e, y) / 3, abs=1e-10)


def test_the_library_makes_nothing_of_a_single_pair_of_each_kind():
    e, y = clusters(0, 40, 30, 180), torch.tensor([0, 0, 1, 2])  # of the first anchor; the second's are far apart
    e[1] = clusters(-40)[0]
    found = [len(pairs) for pairs in pml.miners.MultiSimilarityMiner(0.1)(e, y)]
    assert found == [1, 1, 1, 1]
    assert multi_similarity(e, y) > 0.3
    assert float(PML().build()(e, y)) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_proxy_anchor_is_its_double_loop(seed):
    e, module = unit(20, 6, seed), PML("proxy_anchor").build(9, 6, seed=seed).double()
    assert module(e, RAGGED).item() == pytest.approx(proxy_anchor(e, RAGGED, module.loss.proxies.detach()), abs=1e-10)


def test_arcface_has_the_margin_of_half_a_radian_and_keeps_negative_cosines():
    e, module = unit(8, 3), PML("arcface").build(4, 3).double()
    y = torch.arange(4).repeat(2)
    angle = (e @ F.normalize(module.loss.W.detach(), dim=0)).clamp(-1, 1).acos()
    margin = 0.5
    logits = 16 * (angle + margin * F.one_hot(y, 4)).cos()
    assert bool((angle[torch.arange(8), y] < math.pi - margin).all())
    assert bool((angle.cos() < 0).any())
    assert module(e, y).item() == pytest.approx(F.cross_entropy(logits, y).item(), abs=1e-6)


@pytest.mark.parametrize("loss", ["multi_similarity", "triplet", "contrastive", "cbml_loss", "CircleLoss"])
def test_a_batch_without_pairs_is_zero_with_a_graph_and_equal_embeddings_are_finite(loss):
    module = as_metric_loss(PML(loss) if loss[0].isupper() else loss).build()
    for y in (torch.arange(6), torch.zeros(6).long()):
        e = unit(6, 3).requires_grad_(True)
        value = module(e, y)
        value.backward()
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(e.grad).all())
        if y[1] == 1 and loss in ("multi_similarity", "triplet", "cbml_loss"):
            assert value.item() == 0
    e = torch.ones(6, 4, dtype=torch.float64).div(2).requires_grad_(True)
    value = module(e, torch.arange(3).repeat(2))
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(e.grad).all())


def test_s2sd_by_hand():
    settings = S2SD(CBMLLoss(), dims=(5, 7), weight=3, feature_weight=2, temperature=0.5, delay=1)
    module = settings.build(4, 3, 6, seed=1).double()
    e, h, y = unit(12, 3), unit(12, 6, 1) * 2, torch.arange(4).repeat(3)

    def similarities(a):
        return (a @ a.T / 0.5).softmax(1)

    def divergence(teacher):
        p, q = similarities(teacher), similarities(e)
        return 0.25 / 12 * (p * (p.log() - q.log())).sum()

    wide = [F.normalize(head(h)) for head in module.heads]
    base = (sum(cbml(w, y) for w in wide) / 2 + cbml(e, y)) / 2
    expected = base + 3 * sum(divergence(w) for w in wide) / 2
    assert float(module(e, y, h)) == pytest.approx(float(expected), abs=1e-9)
    assert float(module(e, y, h)) == pytest.approx(float(expected + 2 * divergence(F.normalize(h))), abs=1e-9)
    module.eval()(e, y, h)
    assert int(module.updates) == 2


def test_the_embedding_and_each_head_of_s2sd_have_proxies_of_their_own():
    module = S2SD(PML("proxy_anchor"), dims=(3, 3), weight=0, feature_weight=0).build(4, 3, 6, seed=1).double()
    e, h, y = unit(12, 3), unit(12, 6, 1), torch.arange(4).repeat(3)
    proxies = [part.loss.proxies.detach() for part in (module.base, *module.taught)]
    assert len({tuple(p.flatten().tolist()) for p in proxies}) == 3
    wide = [F.normalize(head(h)).detach() for head in module.heads]
    own, *others = (proxy_anchor(z, y, p) for z, p in zip((e, *wide), proxies))
    assert module(e, y, h).item() == pytest.approx((sum(others) / 2 + own) / 2, abs=1e-9)


def test_the_teaching_does_not_reach_the_teachers():
    module = S2SD(CBMLLoss(), dims=(5,), weight=1e6, feature_weight=1e6, delay=0).build(4, 3, 6)
    h = unit(12, 6, 1).float().requires_grad_(True)
    e = unit(12, 3).float().requires_grad_(True)
    module(e, torch.arange(4).repeat(3), h).backward()
    assert e.grad.abs().max() > 100
    assert h.grad.abs().max() < 100


def test_what_is_learned_is_decided_by_the_seed_alone():
    made = [PML("proxy_anchor").build(3, 4, seed=s).loss.proxies for s in (0, 0, 1)]
    heads = [S2SD(dims=(5,)).build(3, 4, 6, seed=s).heads[0][0].weight for s in (0, 0, 1)]
    for a, b, c in (made, heads):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("text", [e.name for e in entries("metric_loss")] + ["pml('CircleLoss', {'m': 0.3})"])
def test_losses_can_be_written_and_read_back(text):
    loss = parse(text, "metric_loss")
    assert parse(repr(loss), "metric_loss") == loss
    assert from_json(to_json(loss)) == loss


@pytest.mark.parametrize("loss", [CBMLLoss(), PML(), PML("proxy_anchor")])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda e, y: (e, y[:-1]), "one for each"),
        (lambda e, y: (e[0], y[:1]), "shape"),
        (lambda e, y: (e.where(e > 0, torch.nan), y), "NaN"),
        (lambda e, y: (e * 1.01, y), "length 1"),
        (lambda e, y: (e, y.float()), "int64"),
    ],
)
def test_bad_input_is_refused(loss, spoil, said):
    with pytest.raises(BadInput, match=said):
        loss.build(4, 3)(*spoil(unit(8, 3), torch.arange(4).repeat(2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CBMLLoss(pos=(0.5, 0.0)),
        lambda: CBMLLoss(neg=(0.5, -1.0)),
        lambda: CBMLLoss(mean_mix=1.5),
        lambda: CBMLLoss(var_weight=-1.0),
        lambda: CBMLLoss(topk_neg=0),
        lambda: CBMLLoss(weights=(-1.0, 0.0)),
        lambda: S2SD(dims=()),
        lambda: S2SD(temperature=0.0),
        lambda: S2SD(base=S2SD()),
        lambda: S2SD(base="triplets"),
        lambda: PML("triplets"),
        lambda: PML("NoLoss").build(),
        lambda: PML("contrastive", {"marge": 1}).build(),
        lambda: as_metric_loss("linf"),
        lambda: S2SD(dims=(4,)).build(2, 3, 5)(unit(4, 3).float(), torch.arange(2).repeat(2)),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(BadInput):
        make()


def test_cbml_normalises_where_it_is_told():
    e = unit(20, 3)
    assert float(CBMLLoss(normalize=True).build()(3 * e, EVEN)) == pytest.approx(cbml(e, EVEN), abs=1e-10)
