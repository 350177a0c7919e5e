"""Metric learning from the recipe to the embedding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.representation.by_hand import multi_similarity
from tests.representation.conftest import cnn, trained
from withstand.data.arrays import from_arrays
from withstand.errors import BadInput, Diverged
from withstand.hardening.sam import SAM
from withstand.models import Normalised
from withstand.random import Rows
from withstand.representation.cbml import CBML
from withstand.representation.clusters import clustered
from withstand.representation.losses import PML, S2SD, CBMLLoss
from withstand.representation.mdprop import MDProp
from withstand.representation.metric import Metric
from withstand.training.recipe import Step

pytest.importorskip("pytorch_metric_learning")


def step_of(n, **more):
    return Step(0, 10, 0, 2, 0, Rows.count(0, n), **more)


def test_the_loss_is_that_of_the_embeddings_of_the_batch(strokes):
    recipe = Metric(dim=5)
    system = recipe.setup(cnn(), strokes, Rows.count(0, 48)).double().train()
    batch = strokes.batch(range(16))
    batch.x = batch.x.double()
    found = recipe.loss(system, batch, step_of(16))
    e = F.normalize(system.model.head(system.model.backbone(batch.x))).detach()
    assert found.item() == pytest.approx(multi_similarity(e, batch.y), abs=1e-6)


@pytest.mark.parametrize("loss", ["multi_similarity", "proxy_anchor", "arcface", "triplet", "cbml_loss", "s2sd"])
def test_it_learns_to_find_the_class(strokes, loss):
    loss = S2SD(dims=(16,), weight=1, feature_weight=1, delay=0) if loss == "s2sd" else loss
    recipe = Metric(loss, dim=8)
    before = recipe.validate(recipe.deploy(cnn(), strokes.space).eval(), strokes, None, "cpu", 0)["recall_at_1"]
    fitted = trained(recipe, strokes, epochs=30)
    after = recipe.validate(fitted.last, strokes, None, "cpu", 0)["recall_at_1"]
    assert after > max(0.75, before)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


def test_proxies_learn_at_a_rate_of_their_own(strokes):
    recipe = Metric("proxy_anchor", dim=5, proxy_rate=7.0)
    system = recipe.setup(cnn(), strokes, Rows.count(0, 48))
    made = recipe.optimizers(system, lambda p: torch.optim.Adam(p, lr=0.01))["main"]
    assert [g["lr"] for g in made.param_groups] == pytest.approx([0.01, 0.07])
    assert made.param_groups[1]["params"] == [system.metric_loss.loss.proxies]
    assert len(recipe.finish(system).state_dict()) == len(recipe.deploy(cnn(), strokes.space).state_dict())


def test_s2sd_reads_the_mean_and_the_maximum_of_the_map_where_it_is_told(strokes):
    settings = {"dims": (6,), "weight": 2, "feature_weight": 3, "delay": 0}
    values = {}
    for pooling in ("mean", "mean_and_max"):
        recipe = Metric(S2SD(CBMLLoss(), pooling=pooling, **settings), dim=5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            system = recipe.setup(cnn(), strokes, Rows.count(0, 48)).train()
        batch = strokes.batch(range(16))
        values[pooling] = recipe.loss(system, batch, step_of(16)).item()
        pixels = system.model.backbone[:6](batch.x)  # up to the map
        pooled = torch.stack(
            [torch.stack([p.mean() + (p.max() if "max" in pooling else 0) for p in image]) for image in pixels]
        )
        z = F.normalize(system.model.head(pixels.mean((2, 3))))
        assert values[pooling] == pytest.approx(system.metric_loss.eval()(z, batch.y, pooled).item(), abs=1e-4)
    assert abs(values["mean"] - values["mean_and_max"]) > 1e-3


def test_mdprop_and_a_normalised_network_find_the_map(strokes):
    loss = S2SD(dims=(6,), weight=1, feature_weight=1, delay=0, pooling="mean_and_max")
    made = trained(MDProp(loss, dim=5, attack="pgd(linf(0.05), steps=1)"), strokes, Normalised(cnn(), (0.5,), (0.5,)))
    assert made.history[-1]["loss"] > 0
    assert made.last(strokes.batch([0]).x).shape == (1, 5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)),
    ],
)
def test_networks_that_do_not_end_in_the_mean_of_a_map_have_no_maximum_to_add(strokes, model):
    recipe = Metric(S2SD(dims=(6,), pooling="mean_and_max"), dim=5)
    with pytest.raises(BadInput, match=r"ends in the mean of a map.*pooling='mean'"):
        recipe.setup(model, strokes, Rows.count(0, 48))
    Metric(S2SD(dims=(6,)), dim=5).setup(model, strokes, Rows.count(0, 48))


def test_the_stats_of_the_loss_are_in_the_history(strokes):
    row = trained(CBML(dim=5), strokes).history[-1]
    assert 0 < row["loss_kept"] <= 1
    assert row["loss_variance"] > 0


def test_sharpness_aware_steps_go_around_it(strokes):
    assert trained(SAM(recipe=Metric(dim=5)), strokes).history[-1]["loss"] > 0


def test_training_goes_on_from_an_embedding(strokes):
    first = trained(Metric(dim=5), strokes).last
    again = Metric(dim=7).deploy(first, strokes.space)
    assert torch.equal(again.backbone[0].weight, first.backbone[0].weight)
    assert again.head.weight.shape == (7, 8)


def test_half_precision_gives_unit_vectors_to_the_loss(strokes):
    assert trained(Metric(CBMLLoss(), dim=5), strokes, precision="bf16-mixed").history[-1]["loss"] > 0


def test_the_loss_is_taken_outside_of_autocast(strokes):
    recipe, batch, seen = Metric(dim=5), strokes.batch(range(16)), []
    system = recipe.setup(cnn(), strokes, Rows.count(0, 48)).train()

    class Watched(torch.nn.Module):
        def forward(self, z, y, features):
            seen.append((torch.is_autocast_enabled("cpu"), z.dtype, (z @ z.T).dtype))
            return z.sum()

    system.metric_loss = Watched()
    with torch.autocast("cpu", torch.bfloat16):
        recipe.loss(system, batch, step_of(16))
    assert seen == [(False, torch.float32, torch.float32)]


@pytest.mark.parametrize(
    ("recipe", "y"),
    [
        (Metric(), [0, 1, 2, 3, 4, 5]),
        (Metric(), [0, 0, 0, 0, 0]),
        (Metric(), [0, 0, 1]),
        (Metric("proxy_anchor"), [1, 1, 1, 1]),
    ],
)
def test_a_batch_without_pairs_is_refused(recipe, y):
    with pytest.raises(BadInput, match="per_class"):
        recipe.needs_pairs(torch.tensor(y))


def test_examples_without_a_label_are_no_class():
    with pytest.raises(BadInput, match="without a label"):
        Metric().needs_pairs(torch.tensor([-1, -1, -1, 2, 2, 3]))


def test_proxies_need_no_pairs_within_the_batch():
    assert Metric("proxy_anchor").needs_pairs(torch.arange(6)) is None
    with pytest.raises(BadInput):
        Metric("multi_similarity").needs_pairs(torch.arange(6))


@pytest.mark.parametrize(
    ("y", "said"), [([0, 0, 0, 0, 0, 1], "class 1 with one example"), (None, "classes"), ([0] * 6, "classes")]
)
def test_data_that_give_no_pairs_are_refused_before_the_training(y, said):
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    data = from_arrays(x, None if y is None else torch.tensor(y).numpy(), name="few")
    with pytest.raises(BadInput, match=said):
        trained(Metric(), data, batch=4, sampler="m_per_class(2)")


def test_a_training_that_diverges_says_so(strokes):
    model = cnn()
    model[0].weight.data.fill_(torch.nan)
    with pytest.raises(Diverged, match="nan"):
        trained(Metric(), strokes, model)


@pytest.mark.parametrize("make", [lambda: Metric(dim=0), lambda: Metric(proxy_rate=0.0), lambda: CBML(clusters=1)])
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(BadInput):
        make()


# Pseudo-labels ------------------------------------------------------------------------------------------------------


def test_clusters_of_a_trained_models_features_are_classes(strokes):
    model = trained(Metric(PML("triplet"), dim=8), strokes, epochs=40).last
    made = clustered(model, strokes, 6, seed=0)
    truth = strokes.batch(made.positions).y
    pairs = torch.from_numpy(made.labels)[:, None] == torch.from_numpy(made.labels)
    same = truth[:, None] == truth
    assert (pairs & same).sum() / pairs.sum() > 0.5  # by chance 1/6
    again = clustered(model, strokes, 6, seed=0)
    assert again.fingerprint() == made.fingerprint() != strokes.fingerprint()
    batch = made.batch([3, 1])
    assert torch.equal(batch.x, strokes.batch(made.positions[[3, 1]]).x)
    assert batch.y.tolist() == made.labels[[3, 1]].tolist()


def test_clusters_with_one_example_are_left_out(strokes):
    made = clustered(cnn(), strokes, 40, seed=0)
    counts = torch.bincount(torch.from_numpy(made.labels))
    assert int(counts.min()) >= 2
    assert len(made.classes) == len(counts) == made.space.classes
    assert len(made) < 48


def test_cbml_learns_from_clusters_without_reading_a_label(strokes):
    x, y = strokes.batch(range(48)).x.numpy(), strokes.batch(range(48)).y.numpy()
    recipe = CBML(dim=5, clusters=6)
    one = trained(recipe, strokes, batch=8, sampler="m_per_class(2)")
    two = trained(recipe, from_arrays(x, y * 0, classes=2, name="blind"), batch=8, sampler="m_per_class(2)")
    assert one.history[-1]["loss"] == two.history[-1]["loss"]


def test_frozen_norms_keep_their_statistics(strokes):
    before = cnn().state_dict()
    for norm, kept in (("frozen", True), ("trained", False)):
        after = trained(CBML(dim=5, norm=norm), strokes).last.backbone.state_dict()
        assert torch.equal(before["1.running_mean"], after["1.running_mean"]) is kept
        assert not torch.equal(before["0.weight"], after["0.weight"])


def test_more_clusters_than_examples_are_refused(strokes):
    with pytest.raises(BadInput, match="clusters"):
        clustered(cnn(), strokes, 49, seed=0)
