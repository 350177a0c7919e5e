"""What a classifier by nearest neighbours withstands: its votes have no gradients, so attacks look inside."""

from collections.abc import Iterable, Mapping
from typing import Any

from withstand.attacks.engine import Attack
from withstand.attacks.fit import fit_attack
from withstand.attacks.neighbours.advknn import AdvKNN
from withstand.attacks.neighbours.ask import ASK
from withstand.attacks.neighbours.block import FitBlock, KNNBlock
from withstand.attacks.neighbours.origin import Origin
from withstand.audit.check import Check, Table
from withstand.audit.measure import attack_passes, labelled, predict, run_attack, threat_text
from withstand.data.derived import Part
from withstand.data.images import stratified
from withstand.errors import bad
from withstand.models.neighbours import knn_of
from withstand.protocols import Batch, Context, Dataset, Figure, Findings, Row, Target
from withstand.registry import component
from withstand.threats import Linf, ThreatField

_FITTED_ON = 2000  # examples at most


@component("check", "knn", systems=("advknn", "ask"))
class KNNCheck(Check):
    """Accuracy of a kNN classifier under attacks that look inside, judged by its real votes.

    Votes have no gradient: gradient attacks on them find nothing, which says nothing of robustness. `origin` attacks the
    network under the votes; `advknn` a block that has learned to tell the votes of the audited examples (the attacker can
    ask the classifier about them), "advknn_ce" the same block by its class alone, which is often the stronger form; `ask` a
    soft vote of the nearest references of every class. What counts in the end is what no attack breaks ("worst").

    Only for classifiers that `withstand.knn_classifier` made. threat: what the adversary may do. steps: of each attack.
    epochs: of fitting the block, on 2,000 of the examples at most.

    References: Li, Chen, He, Xue, "AdvKnn: Adversarial Attacks On K-Nearest Neighbor Classifiers With Approximate
    Gradients", 2019, arXiv 1911.06591. Wang, Chen, Yao, Liu, Rajapakse, Hero, "ASK: Adversarial Soft k-Nearest Neighbor
    Attack and Defense", 2022, arXiv 2106.14300.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 40
    epochs: int = 30

    title = "Nearest neighbours"
    access = frozenset({"features", "neighbours"})

    def __post_init__(self) -> None:
        if not isinstance(self.threat.eps, float):
            raise bad("threat", repr(self.threat), "a threat with one radius for all examples, e.g. linf(8/255)")
        if self.epochs < 1:
            raise bad("epochs", self.epochs, "a whole number >= 1")
        Origin(self.threat, self.steps)

    def attacks(self, block: Any, smallest: int = 6) -> dict[str, Attack]:
        """The attacks by the names of their rows. smallest: references of the class that has the fewest."""
        size = min(1.0, 4 / self.steps)  # 100 steps of 0.01 for a radius of 0.25 in the paper
        return {
            "origin": Origin(self.threat, self.steps, size),
            "advknn": AdvKNN(self.threat, block, self.steps, size),
            "advknn_ce": AdvKNN(self.threat, block, self.steps, size, kl_weight=0.0),
            "ask": ASK(self.threat, self.steps, neighbours=max(1, min(5, smallest - 1))),
        }

    def passes(self, target: Target) -> float:
        return 3 + self.epochs / 2 + sum(1 + attack_passes(attack, target) for attack in self.attacks(None).values())

    def prepare(self, target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
        """The block's weights."""
        size = min(self.examples or len(data), len(data), _FITTED_ON)
        order = stratified(getattr(data, "labels", None), len(data), 0)[:size]
        part = Part(data, sorted(order.tolist()))
        settings = {"epochs": self.epochs, "batch": 32, "accelerator": ctx.device.partition(":")[0]}
        block = fit_attack(FitBlock(), target, part, validation=None, seed=ctx.seed, **settings).module
        ctx.spend(forwards=self.epochs * size)
        return {name: tensor.detach().cpu() for name, tensor in block.state_dict().items()}

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"attack": name}: outcome, distance of the point; "clean" and "worst" among the names."""
        x, y, ids = labelled(shard)
        block = KNNBlock(artefact["bias"].shape[1])
        block.load_state_dict(artefact)
        guess = predict(target, x, ctx).argmax(1)
        right = guess == y
        stands = {"clean": right}
        worst = right
        for id_, outcome, label, said in zip(*(c.tolist() for c in (ids, right, y, guess))):
            yield Row("image", id_, {"attack": "clean"}, outcome, None, label, said, 0.0, 1)
        knn = knn_of(target)
        smallest = int(knn.labels.bincount(minlength=knn.classes).min())
        for name, attack in self.attacks(block.to(x.device), smallest).items():
            found = run_attack(attack, target, x, y, ids, ctx)
            guess = predict(target, found.x_adv, ctx).argmax(1)
            stands[name] = right & (guess == y)
            worst = worst & stands[name]
            columns = (ids, stands[name], y, guess, found.distance, found.forwards + found.backwards)
            for id_, outcome, label, said, distance, cost in zip(*(c.tolist() for c in columns)):
                yield Row("image", id_, {"attack": name}, outcome, None, label, said, distance, cost)
        for id_, outcome, label in zip(*(c.tolist() for c in (ids, worst, y))):
            yield Row("image", id_, {"attack": "worst"}, outcome, None, label)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        at: dict[str, Any] = {"threat": self.threat.component_name, "eps": self.threat.eps}  # type: ignore[attr-defined]
        found, listed = Findings(), []
        for name in ("clean", *self.attacks(None), "worst"):
            metric = rows.share("knn_accuracy", attack=name)
            listed.append([name, f"{metric.value:.1%}", f"{metric.low:.1%} to {metric.high:.1%}"])
            metric.condition |= {} if name == "clean" else at
            found.metrics.append(metric)
        said = threat_text(at["threat"], at["eps"])
        caption = "Attacks inside the classifier, judged by its real votes; worst: right whatever they do."
        data = {"columns": ["attack", "still right", "95%"], "rows": listed}
        found.figures.append(Figure("table", f"Votes under {said}", data, caption))
        return found
