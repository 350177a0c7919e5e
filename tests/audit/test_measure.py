import pytest
import torch

from tests.attacks import fitted
from withstand.attacks import GPGA
from withstand.attacks.neighbours.block import KNNBlock
from withstand.audit.measure import attack_passes, predict, threat_text
from withstand.models import knn_classifier, knn_of
from withstand.protocols import Context, Space
from withstand.registry import entries, parse, replace
from withstand.threats import Linf

QUICK = {
    "pgd": "pgd(linf(0.1), steps=4, restarts=2, views=(eot(3),))",
    "apgd": "apgd(linf(0.1), steps=6, restarts=2)",
    "apgd_t": "apgd_t(linf(0.1), steps=6)",
    "autoattack": "autoattack(linf(0.02), steps=10, queries=300)",
    "gpga": "gpga(linf(0.1), weight=0.0)",
    "fab": "fab(linf(0.1), steps=5, restarts=2)",
    "fab_t": "fab_t(linf(0.1), steps=5)",
    "square": "square(linf(0.01), queries=70)",
    "boundary": "boundary(queries=150)",
    "carlini_wagner": "carlini_wagner(steps=20, searches=3)",
    "deepfool": "deepfool(steps=5)",
    "lbfgs": "lbfgs(steps=10, searches=3)",
    "opt": "opt(queries=300, q=3)",
    "sign_opt": "sign_opt(queries=300, k=20)",
    "zoo": "zoo(queries=300, searches=2, coordinates=8)",
    "rap": "rap(linf(0.1), steps=3, views=(worst_neighbour(steps=2, after=1),))",
    "noise": "noise(linf(0.1), samples=5)",
    **fitted.attacks(classes=10),
    "mean_guide": "mean_guide(linf(0.1), guides=10, steps=20)",
    "mean_guide_l2": "mean_guide_l2(guides=10, steps=20, searches=3)",
}
ATTACKS = [
    e.name
    for e in entries("attack")
    if e.module.startswith("withstand.attacks")
    and e.load().access != "top_k"
    and getattr(e.load(), "task", "") != "hashing"  # those: tests/attacks/hashing; the others: checks/test_retrieval.py
]
VOTES = [e.name for e in entries("attack") if e.module.startswith("withstand.attacks.neighbours.")]
LIVE = {"advknn": lambda knn: {"block": KNNBlock(10, knn_of(knn).sizes)}}
"""What else an attack is given that knows the model that it is for."""


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_costs_more_than_its_estimate(name, hardened, digits):
    model = knn_classifier(hardened, (digits.x[50:], digits.y[50:]), ["7"]) if name in VOTES else hardened
    attack = replace(parse(QUICK.get(name, name), "attack"), **(LIVE[name](model) if name in LIVE else {}))
    result = attack.run(model, digits.x[:16], digits.y[:16])
    spent = (result.forwards + result.backwards).max() / 2
    assert 0 < spent <= attack_passes(attack, model)


def test_the_passes_of_a_guide_are_in_the_estimate(hardened, plain, digits):
    for started in (False, True):
        attack = GPGA(Linf(1e-6), plain, guided_start=started)
        result = attack.run(hardened, digits.x[:16], digits.y[:16])
        spent = (result.forwards + result.backwards).max() / 2
        assert 0 < spent <= attack_passes(attack, hardened)


def test_threats_are_written_as_people_write_them():
    assert threat_text("linf", 4 / 255) == "Linf 4/255"
    assert threat_text("linf", 0.3) == "Linf 0.3"
    assert threat_text("l2") == "L2"


def test_predict_counts_its_passes_works_in_blocks_and_restores_the_model(plain, digits):
    plain.model.train()
    ctx = Context(block=7)
    logits = predict(plain, digits.x[:20], ctx)
    assert plain.model.training
    plain.model.eval()
    assert ctx.cost["forwards"] == 20
    assert torch.allclose(logits, plain.model(digits.x[:20]), atol=1e-5)
    assert not logits.requires_grad


def test_a_target_that_only_decides_gives_one_hot_rows(plain, digits):
    class Decider:
        name, task, module, access = "decider", "classification", None, frozenset({"decision"})
        space = Space((1, 8, 8), (0.0, 1.0), 10)

        def __call__(self, x):
            return plain.model(x).argmax(1)

        def fingerprint(self):
            return ""

    logits = predict(Decider(), digits.x[:20], Context())
    assert logits.shape == (20, 10)
    assert torch.equal(logits.argmax(1), plain.model(digits.x[:20]).argmax(1))
