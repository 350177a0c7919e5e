"""Everything runs where its model and its data are; on machines without a GPU one is pretended."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import withstand as ws
import withstand.models
from tests.attacks import test_contract as attacks
from tests.hardening.conftest import cnn, images, network_for, recipes
from tests.hardening.test_contract import trainer_for
from tests.pretend import GPU, OtherDevice, pretended
from withstand.attacks import GPGA
from withstand.attacks.neighbours.block import KNNBlock, fidelity
from withstand.data.arrays import from_arrays
from withstand.hardening.mean_shift import certify_mean_shift
from withstand.hardening.smoothing import certify, predict
from withstand.models import HiddenKNN, as_target
from withstand.protocols import Batch
from withstand.registry import parse
from withstand.representation.metrics import code_scores, normalized_mutual_information, retrieval_scores
from withstand.reproductions.probes import domain_probe
from withstand.threats import Linf
from withstand.training import Trainer, loop


@pytest.fixture(autouse=True)
def pretence():
    with pretended():
        yield


def network(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(512, classes)).eval()


def pictures(n: int = 7, seed: int = 0) -> torch.Tensor:
    return ws.Rows.count(seed, n).uniform((1, 8, 8), "x")


@pytest.fixture
def votes():
    return HiddenKNN(network(), ["2", "logits"], pictures(60, 1), torch.arange(60) % 5, k=3)


@pytest.fixture
def on_gpu(monkeypatch):
    """Trainings run there."""
    monkeypatch.setattr(loop, "launched", lambda trainer, find_unused_parameters: OnGPU(accelerator="cpu", devices=1))


def test_the_pretence_refuses_what_cuda_refuses_and_nothing_else():
    here, there = torch.ones(3, 3), torch.ones(3, 3).to("cuda")
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here[there.long()[0]],
        lambda: there.where(there > 0, here),
        lambda: torch.rand(3, device=GPU, generator=torch.Generator()),
        lambda: nn.Linear(3, 2)(there),
    ):
        with pytest.raises(OtherDevice):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there[torch.tensor([0])] * torch.tensor(2.0)).device == GPU
    assert there.sum().device == torch.zeros_like(there).device == there.new_ones(2).device == GPU
    assert there.cpu().numpy().sum() == 9
    module = nn.Linear(3, 2).to("cuda")
    module(there).sum().backward()
    assert module.weight.device == module.weight.grad.device == GPU  # type: ignore[union-attr]
    assert module.cpu().weight.device == here.device


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_attacks(name, votes):
    model = (votes if name in attacks.VOTES else network()).to("cuda")
    x = pictures().to("cuda")
    found = attacks.make(name, model).run(model, x, model(x).argmax(1), seed=1)
    every = [v for v in (*vars(found).values(), *found.notes.values()) if isinstance(v, torch.Tensor)]
    assert len(every) >= 7
    assert all(v.device == GPU for v in every)


@pytest.mark.parametrize("name", recipes())
def test_recipes(name, on_gpu):
    recipe = recipes()[name]
    fitted = trainer_for(recipe, epochs=1).fit(recipe, network_for(name), images(), images())
    assert all(p.device == GPU for p in fitted.last.parameters())


GENERATORS = (
    "aigan(attack=pgd(linf(0.3), steps=2), ngf=4, blocks=1, switch=1)",
    "aigan(variant='robust_d', attack=pgd(linf(0.3), steps=2), ngf=4, blocks=1)",
    "bia(layer='3', rn=True, da=True, ngf=4, blocks=1)",
    "cda(ngf=4, blocks=1)",
)


@pytest.mark.parametrize("text", GENERATORS)
def test_generators(text, on_gpu):
    trainer = Trainer(epochs=2, batch=8)
    assert next(trainer.fit(parse(text, "recipe"), cnn(), images()).last.parameters()).device == GPU


def test_a_block(on_gpu, votes):
    fitted = Trainer(epochs=1, batch=8).fit(parse("knn_block", "recipe"), votes, images())
    assert next(fitted.last.parameters()).device == GPU


class OnGPU(Fabric):
    """Fabric that says it is on the GPU."""

    device = GPU  # type: ignore[assignment]

    def setup_module(self, module, move_to_device=True, _reapply_compile=True):
        return super().setup_module(module, False, _reapply_compile)


def test_an_audit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a pretended GPU")
    model, x = network(), pictures(24)
    others = {
        "surrogate": network(),
        "guide": nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
        "ood": from_arrays(pictures(12, 3), None),
    }
    checks = [
        "guided(linf(0.1), examples=4)",
        "transfer(linf(0.1), examples=4)",
        "unfamiliar(examples=12)",
        "saliency(examples=4)",
        "certified(n=20, n0=5)",
        "corruptions(severities=(3,), examples=4)",
        "trust(threat=linf(0.1), examples=4)",
    ]
    card = ws.audit(model, (x, model(x).argmax(1)), checks=checks, given=others, device="cuda")
    assert {r.check: r.reason for r in card.results if r.status != "done"} == {}
    assert len(card.results) == len(checks)


def test_a_guide_that_is_loaded_from_a_text_follows_the_examples(monkeypatch):
    monkeypatch.setattr(withstand.models, "load_model", lambda text: as_target(network()))
    model, x = network().to("cuda"), pictures().to("cuda")
    y = model(x).argmax(1)
    for guided_start in (False, True):
        attack = GPGA(Linf(0.1), f"zoo:guide_{guided_start}", steps=2, guided_start=guided_start)
        assert attack(model, x, y).device == GPU


def test_certificates_lie_where_the_examples_do():
    model, x = network().to("cuda"), pictures(2).to("cuda")
    assert {part.device for part in certify(model, x, n0=5, n=20)} == {GPU}
    assert predict(model, x, n=20).device == GPU
    series = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to("cuda")
    for bound in ("renyi", "released"):
        found = certify_mean_shift(series, x.flatten(1)[:, None, :16], n=20, n0=5, bound=bound)
        assert {part.device for part in found} == {GPU}


def test_a_block_is_compared_with_votes_of_another_device(votes):
    """As `fit_attack` leaves them: the block where it was trained, the classifier where it was."""
    assert 0 <= fidelity(KNNBlock(5, votes.sizes).to("cuda"), votes, pictures())["agreement"] <= 1


def test_retrieval_is_measured_of_embeddings_and_codes():
    z, y = pictures(12).flatten(1).to("cuda"), torch.arange(12).to("cuda") % 3
    itself = torch.arange(12).to("cuda")
    assert len(retrieval_scores(z, y, z, y, ks=(1,), without=itself)["recall_at_1"]) == 12
    codes = torch.where(z > 0.5, 1.0, -1.0)
    assert len(code_scores(codes, y, codes, y, without=itself)["map"]) == 12
    assert 0 <= normalized_mutual_information(z, y) <= 1


def test_a_batch_that_comes_back_to_main_memory_is_waited_for():
    asked = []

    class Asked(torch.Tensor):
        def to(self, *where, **how):
            asked.append((*where, how))
            return self

    for device in ("cuda:1", "cpu", torch.device("cpu")):
        Batch(torch.ones(2).as_subclass(Asked)).to(device)
    assert [how["non_blocking"] for _, how in asked] == [True, False, False]


def test_a_probe_of_domains():
    class Hardened:
        module = network().to("cuda")

    x, y = pictures(12).to("cuda"), torch.arange(12).to("cuda") % 2
    assert len(domain_probe(0.1, 0, by_class=True)("arm", Hardened, x, y)[0]["examples"]) == 12
