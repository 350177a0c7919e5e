import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from withstand.errors import BadInput
from withstand.models.layers import (
    BranchNorm,
    add_branches,
    branch_parameters,
    frozen_statistics,
    keep_branch,
    route,
)

NAMES = ["main", "adversarial", "patch"]


def network(norm=lambda: nn.BatchNorm2d(4)):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(), nn.Flatten(), nn.LazyLinear(5)
    )
    layers(torch.randn(9, 3, 8, 8) * 2 + 1)
    return layers.double()


def branched(**options):
    model = add_branches(network(), NAMES, **options)
    for i, name in enumerate(NAMES):
        for p in branch_parameters(model, name):
            p.data += 0.1 * (i + 1) * torch.randn_like(p)
    return model


IDS = torch.tensor([0, 1, 1, 0, 2, 0, 2, 1, 0])


def images(n=9):
    return torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("ids", [IDS, IDS.sort().values])
def test_one_mixed_pass_equals_a_pass_per_branch(ids, sync):
    one, many = branched(sync=sync), branched()
    x, y = images(), torch.arange(9) % 5
    with route(one, ids):
        out = one(x)
    nn.functional.cross_entropy(out, y, reduction="sum").backward()
    for i, name in enumerate(NAMES):
        with route(many, name):
            part = many(x[ids == i])
        assert torch.allclose(out[ids == i], part, rtol=0, atol=1e-12)
        nn.functional.cross_entropy(part, y[ids == i], reduction="sum").backward()
    for (name, a), b in zip(one.named_parameters(), many.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-10, atol=1e-12), name
    for (name, a), b in zip(one.named_buffers(), many.buffers()):
        assert torch.allclose(a, b, rtol=1e-12), name
    assert int(one[1].branches["patch"].num_batches_tracked) == 2


@pytest.mark.parametrize(("kind", "norm"), [("group", lambda: nn.GroupNorm(2, 4)), ("layer", lambda: nn.LayerNorm(6))])
def test_group_and_layer_norm_differ_in_their_affine_part(kind, norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm())
    with pytest.raises(BadInput, match="layers of kind batch"):
        add_branches(model, NAMES)
    add_branches(model, NAMES, kinds=(kind,))
    model[1].branches["patch"].bias.data += 1
    x = images().float()
    with route(model, IDS):
        out = model(x)
    assert torch.allclose(out - model(x), (IDS == 2).float()[:, None, None, None].expand_as(out), atol=1e-6)


def test_branches_begin_as_copies_and_one_is_kept_exactly():
    plain = network().eval()
    model = add_branches(copy.deepcopy(plain), NAMES)
    x = images()
    for name in NAMES:
        with route(model, name):
            assert torch.equal(model(x), plain(x))
    model[1].branches["patch"].running_mean += 1
    with route(model, "patch"):
        wanted = model(x)
    assert not torch.equal(wanted, plain(x))
    kept = keep_branch(model, "patch")
    assert torch.equal(kept(x), wanted)
    assert [*kept.state_dict()] == [*plain.state_dict()]
    assert not any(isinstance(m, BranchNorm) for m in kept.modules())


def test_a_layer_that_is_the_model_is_returned_and_a_shared_one_stays_shared():
    assert isinstance(add_branches(nn.BatchNorm1d(3), NAMES), BranchNorm)
    norm = nn.BatchNorm1d(3)
    model = add_branches(nn.Sequential(norm, nn.ReLU(), norm), NAMES)
    assert model[0] is model[2]
    keep_branch(model, "main")
    assert model[0] is model[2]
    assert type(model[0]) is nn.BatchNorm1d


def test_probabilities_mix_the_outputs_of_the_branches():
    layer = add_branches(nn.BatchNorm2d(4), NAMES).eval()
    for i, m in enumerate(layer.branches.values()):
        m.running_mean += i
        m.weight.data *= i + 1
    x = torch.randn(6, 4, 2, 2)
    pi = torch.rand(6, 3).softmax(1).requires_grad_()
    with route(layer, pi):
        out = layer(x)
    naive = torch.stack([sum(pi[n, b] * layer.branch(NAMES[b])(x)[n] for b in range(3)) for n in range(6)])
    assert torch.allclose(out, naive, atol=1e-6)
    assert torch.autograd.grad(out.sum(), pi)[0].abs().sum() > 0
    with route(layer, nn.functional.one_hot(torch.arange(6) % 3, 3).float()):
        hot = layer(x)
    with route(layer, torch.arange(6) % 3):
        assert torch.allclose(hot, layer(x), atol=1e-6)


def test_routes_nest_and_end_with_exceptions():
    model = branched().eval()
    x = images()
    default = model(x)
    with route(model, "main"):
        assert torch.equal(model(x), default)
    with route(model, "patch"):
        patch = model(x)
        with route(model, "adversarial"):
            assert not torch.equal(model(x), patch)
        with pytest.raises(BadInput), route(model, IDS):
            model(x[:1])
        assert torch.equal(model(x), patch)
    assert torch.equal(model(x), default)
    assert not torch.equal(patch, default)


def test_routes_pass_wrappers_and_checkpoints():
    plain, saved = branched(), branched()
    x = images()
    for model, run in ((plain, plain), (saved, lambda z: checkpoint(saved, z, use_reentrant=False))):
        with route(nn.ModuleDict({"module": model}), IDS):
            run(x).square().sum().backward()
    for a, b in zip(plain.parameters(), saved.parameters()):
        assert torch.equal(a.grad, b.grad)


def test_frozen_statistics_normalise_by_the_batch_and_learn_nothing():
    model = branched()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with route(model, IDS):
        with frozen_statistics(model):
            frozen = model(images())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert torch.equal(frozen, model(images()))
    assert not all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_branch_parameters_are_those_of_one_branch():
    model = branched()
    assert [p is q for p, q in zip(branch_parameters(model, "patch"), model[1].branches["patch"].parameters())] == [
        True,
        True,
    ]
    assert len(branch_parameters(model, "patch")) == 4


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("mian", "branch: there is no 'mian'. Did you mean main"),
        (torch.tensor([0, 3]), "ids from 0 to 3; allowed: 0 to 2"),
        (torch.tensor([-1, 1]), "ids from -1 to 1"),
        (torch.rand(4, 2), r"floating \[N, 3\]"),
        (torch.randn(4, 3), "rows that are no probabilities"),
        (torch.ones(4, dtype=torch.int32), "int64"),
        (1, "a branch name, a tensor"),
    ],
)
def test_unusable_routes_are_refused(to, message):
    with pytest.raises(BadInput, match=message), route(branched(), to):
        pass


def test_what_cannot_be_computed_is_refused_in_the_pass():
    model = branched()
    with route(model, IDS), pytest.raises(BadInput, match="9 rows; allowed: 4, the rows of the batch"):
        model(images(4))
    with route(model, torch.full((9, 3), 1 / 3)), pytest.raises(BadInput, match="probabilities in train mode"):
        model(images())
    for sync in (False, True):
        flat = add_branches(nn.BatchNorm1d(3), NAMES, sync=sync)
        with (
            route(flat, torch.tensor([0, 0, 1])),
            pytest.raises(BadInput, match="1 value per channel in branch 'adversarial'"),
        ):
            flat(torch.randn(3, 3))
        with route(flat, "patch"), pytest.raises(BadInput, match="1 value per channel in branch 'patch'"):
            flat(torch.randn(1, 3))


def test_unusable_models_and_names_are_refused():
    for names in ([], ["main", "main"], ["a.b"], [3]):
        with pytest.raises(BadInput, match="names"):
            add_branches(network(), names)
    with pytest.raises(BadInput, match="kinds"):
        add_branches(network(), NAMES, kinds=("instance",))  # pyright: ignore
    with pytest.raises(BadInput, match="has branches"):
        add_branches(branched(), NAMES)
    with pytest.raises(BadInput, match="without branches"), route(network(), "main"):
        pass
    with pytest.raises(BadInput, match="Did you mean patch"):
        keep_branch(branched(), "pach")
