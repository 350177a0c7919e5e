"""Several kinds of feature-space adversarial examples in one batch of metric learning, each behind norms of its own."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.attacks import PGD
from withstand.attacks.embeddings import MultiTarget
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.models.layers import add_branches, branch_parameters, keep_branch, route
from withstand.objectives import as_objective
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.registry import replace as changed
from withstand.representation.losses import PML, MetricLossField
from withstand.representation.metric import Metric
from withstand.threats import Linf
from withstand.training.recipe import Step

MAIN = "main"


def _kinds(value: Any) -> tuple[tuple[str, Any], ...]:
    allowed = 'pairs of a name and a number of targets or an objective, e.g. (("single", 1), ("multi", 5))'
    if not isinstance(value, Sequence) or not all(isinstance(k, Sequence) and len(k) == 2 for k in value):
        raise bad("kinds", repr(value), allowed)
    names = [name for name, _ in value]
    if len({*names, MAIN}) <= len(names) or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise bad("kinds", repr(value), f"{allowed}; different names made of letters, not {MAIN!r}")
    whole = [isinstance(v, int) and not isinstance(v, bool) for _, v in value]
    return tuple((n, MultiTarget(v) if w else as_objective(v)) for (n, v), w in zip(value, whole))


@component("recipe", "mdprop", systems=("mdprop",))
class MDProp(Metric):
    """Metric learning with one half of each batch attacked towards one embedding, the other half towards several.

    min L([f(x; main) ; f(x'_1; norm 1) ; ... ; f(x'_k; norm k)], [y ; y_1 ; ... ; y_k]), one metric loss L on all
    embeddings of the step together, x'_j = part j of the batch attacked in eval mode through norm branch j, y_j its labels.
    Each branch has batch norm of its own, a copy of the given one to begin with, running statistics included (the
    published code copies the parameters only); the main one ships.

    metric_loss, dim, proxy_rate: see `metric`. attack: any search that takes an objective. kinds: the branches, each with
    the number of embeddings that its examples are led towards (`multi_target`) or another objective; the batch is cut into
    as many parts, as equal as can be. norms: "shared" sends all through the same batch norm, which is adversarial training
    on the same examples. kinds=(), is `metric`.

    The published radius, 0.01 for images normalised as for ImageNet, is about 0.00225 here, where images lie in [0, 1], the
    range that attacked ones keep to (published: the range of the batch); the published start, uniform within 0.0005 there,
    is here normal with the same standard deviation, 6.5e-5.
    norm_rates: the learning rates of the batch norms that ship and of the others, as multiples of the trainer's. The
    published option is (1, 0.01), of 1e-5.
    kinds=(("single", 1), ("multi", 5), ("unadversarial", "towards_own_class")) adds the unadversarial examples of the
    paper. How those were made could not be confirmed: they are a reconstruction.

    With one norm for each kind the branch that ships never normalises an attacked image; expect norms="shared" to withstand
    attacks on it at least as well. The paper trains with adam(1e-5, weight_decay=4e-4), batches of 64 with 2 of a class.

    Reference: Singh, Kakizaki, Araki, "Advancing Deep Metric Learning With Adversarial Robustness", ACML 2023,
    arXiv 2211.16253.
    """

    metric_loss: MetricLossField = PML("multi_similarity")
    dim: int = 128
    proxy_rate: float = 10.0
    attack: AttackField = PGD(Linf(0.00225), steps=1, step=1.0, random_start=6.5e-5)
    kinds: Annotated[Any, PlainValidator(_kinds)] = (("single", MultiTarget(1)), ("multi", MultiTarget(5)))
    norms: Literal["own", "shared"] = "own"
    norm_rates: tuple[float, float] = (1.0, 1.0)

    defaults: ClassVar = Metric.defaults

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.attack, "objective"):
            raise bad("attack", repr(self.attack), "one whose objective can be chosen, e.g. pgd(linf(2/255), steps=1)")
        if self.attack.mode != "eval":
            mend = "Running statistics keep the examples of a batch apart."
            raise bad("attack", f"mode={self.attack.mode!r}", "mode='eval'", mend)
        if not all(0 <= rate < float("inf") for rate in self.norm_rates):
            raise bad("norm_rates", self.norm_rates, "two numbers >= 0")
        if self.norm_rates != (1.0, 1.0) and not self._branched:
            raise bad("norm_rates", self.norm_rates, "(1, 1) where there is one norm for all", "Take norms='own'.")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = super().setup(model, data, rows)
        if self._branched:
            if not any(isinstance(m, _BatchNorm) for m in system.model.modules()):
                mend = "norms='shared' has the same adversarial examples without branches."
                raise bad("model", "no batch norm", "a network with batch norm, which mdprop splits", mend)
            add_branches(system.model, [MAIN, *(name for name, _ in self.kinds)])
        return system

    def rates(self, system: Any) -> list[tuple[list[nn.Parameter], float]]:
        (model, one), *rest = super().rates(system)
        if self.norm_rates == (1.0, 1.0):
            return [(model, one), *rest]
        main = branch_parameters(system.model, MAIN)
        others = [p for name, _ in self.kinds for p in branch_parameters(system.model, name)]
        norms = {id(p) for p in (*main, *others)}
        groups = [([p for p in model if id(p) not in norms], one), *zip((main, others), self.norm_rates)]
        return [*groups, *rest]

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        if not self.kinds:
            return batch
        self.needs_pairs(batch.y)
        if len(batch) < 2 * len(self.kinds):
            raise bad("batch", len(batch), f"at least {2 * len(self.kinds)}, two examples of each kind")
        found = []
        for (name, objective), at in zip(self.kinds, self._parts(batch)):
            attack, own = changed(self.attack, objective=objective), batch.index(at)
            with self._through(system, name):
                here = replace(step, rows=step.rows.take(at))
                found.append(here.attack(attack, system.model, own.x, own.y, name))
        return replace(batch, extra={**batch.extra, "adversarial": torch.cat(found)})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        if not self.kinds:
            return super().loss(system, batch, step)
        y: Any = batch.y
        sizes = [len(batch), *(len(at) for at in self._parts(batch))]
        branch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(batch.x.device)
        with self._through(system, branch):
            return self.on_embeddings(system, torch.cat([batch.x, batch.extra["adversarial"]]), torch.cat([y, y]), step)

    def finish(self, system: Any) -> nn.Module:
        return keep_branch(system.model, MAIN) if self._branched else system.model

    @property
    def _branched(self) -> bool:
        return self.norms == "own" and bool(self.kinds)

    def _parts(self, batch: Batch) -> Sequence[Tensor]:
        return torch.arange(len(batch), device=batch.x.device).tensor_split(len(self.kinds))

    def _through(self, system: Any, to: Any) -> Any:
        return route(system.model, to) if self._branched else nullcontext()
