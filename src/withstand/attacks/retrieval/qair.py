"""QAIR: an image for which a search engine returns other items altogether, found with few questions.

Reconstructed from the abstract, and from the relevance loss in the code of a later paper by its authors (ARRA): the paper's
body and code could not be read, and its numbers are not to be expected of this.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor

from withstand.attacks.engine import Problem
from withstand.attacks.engine.needs import needs_positive
from withstand.attacks.engine.queries import Queries
from withstand.attacks.retrieval.estimate import Estimate, nonzero, open_rows
from withstand.attacks.retrieval.plain import OnLists
from withstand.attacks.retrieval.relevance import Gain
from withstand.attacks.retrieval.substitute import Prior, Substitute, embedded, loaded, prior_of
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.registry import component
from withstand.threats import Linf, ThreatField, per_row

_GROWTH = 1.5  # of sigma, after directions that changed nothing


@component("attack", "qair", systems=("qair",))
class QAIR(OnLists):
    """Prior-guided query attack on a search engine that shows its top-k list and nothing else.

    It lowers L(z) = sum_i w_i w_pos(i), the relevance of the clean list R in the list at z (`relevance`), until no item of R
    is returned. First it follows a substitute that imitates the engine, one question a step:
    z <- P(z + step * eps * steepest(v)), v the unit gradient of -sum_i w_i cos(f(z), f(R_i)), for as long as L does not
    rise. After the first rise (that step is taken back) the gradient is estimated, q questions and one for the step:
    g = 1/q sum_b (L(z) - L(P(z + sigma u_b))) / sigma * u_b,  u_b = sqrt(lam) v + sqrt(1 - lam) normalise((I - v v^T) xi_b),
    xi_b ~ N(0, I). Where q directions change nothing, the step follows v, and sigma grows by a half.

    Every question is inside the set, so that any of them may succeed; the result's cost counts all of them, the clean one
    included, and never exceeds `queries`. L is piecewise constant: `zero_differences` [N] in the result's notes is the share
    of directions that changed nothing (NaN where none was asked for), `values` [N, queries] minus the lowest L
    known after each question.

    substitute: an embedding of images (a module, `artefact:DIR` of the recipe `steal`, or what `load_model` reads); None
    estimates from random directions alone (RGF). images: what the engine's items look like, where the engine does not show
    them: a function or mapping of ids, or an address or path with {id} in it. first: whether to begin with steps along the
    prior alone; False is P-RGF. q: directions of an estimate; 0 follows the prior to its end whatever L does (transfer).
    sigma: length of a probe, as a share of the length eps * sqrt(D) of a sign step (so that
    it suits images of any size). step: as a share of eps. lam: the weight
    of the prior, from 0 (none) to 1 (v itself, unasked), or "auto": the optimum of P-RGF from 1 + 3 further questions.
    gain: of the ranks, see `relevance`.

    >>> QAIR(Linf(0.25), queries=150, substitute=stolen).run(engine, x).success

    References: reconstructed from the abstract of Li et al., "QAIR: Practical Query-efficient Black-Box Attacks for Image
    Retrieval", CVPR 2021, arXiv 2103.02927; estimator: Cheng, Dong, Pang, Su, Zhu, "Improving Black-box Adversarial Attacks
    with a Transfer-based Prior", 2019, arXiv 1906.06919.
    """

    threat: ThreatField = Linf(8 / 255)
    queries: int = 200
    substitute: Substitute = None
    images: Annotated[Any, PlainValidator(lambda value: value)] = None
    first: bool = True
    q: int = 5
    sigma: float = 0.4
    step: float = 0.2
    lam: float | Literal["auto"] = 0.5
    gain: Gain = "auto"

    access = "top_k"

    def __post_init__(self) -> None:
        self.needs_queries()
        needs_positive(self, "sigma", "step")
        if self.q < 0 or (self.q == 0 and self.substitute is None):
            raise bad("q", self.q, "a whole number >= 1, or 0 with a substitute to follow")
        if not isinstance(self.lam, str) and not 0 <= self.lam <= 1:
            raise bad("lam", self.lam, 'a number from 0 to 1, or "auto"')

    def refuse(self, model: Any, x: Tensor) -> None:
        if self.substitute is None:
            return
        model.view([], x, self.images)
        module = loaded(self.substitute)
        with torch.no_grad(), frozen(module):
            try:
                embedded(module, x.to(next(module.parameters(), x).device))
            except RuntimeError as error:
                shape = "x".join(map(str, x.shape[1:]))
                got = f"an embedding that fails on images of {shape} ({str(error).splitlines()[0]})"
                raise bad("substitute", got, f"an embedding of images of {shape}") from error

    def search(self, p: Problem) -> Tensor:
        q, estimate, turn = Queries(p, self.queries), Estimate(self.q, self.lam, p), 0
        end = p.x.clone()
        z, value, prior = end.clone(), p.best_value.clone(), self._prior(p)
        trusts = torch.full((len(z),), prior is not None and (self.first or self.q == 0), device=z.device)
        sigma = torch.full((len(z),), self.sigma, dtype=z.dtype, device=z.device)
        while not p.finished:
            v = torch.zeros_like(z) if prior is None else prior(z, p.alive)
            ghat = estimate(p, q, z, value, v, sigma, ~trusts, turn)
            flat = ~(trusts | nonzero(ghat))
            blind = flat & ~nonzero(v)
            ghat = torch.where(per_row(trusts | flat, z), v, ghat)
            if bool(blind.any()):
                noise = p.rows.normal(tuple(z.shape[1:]), "qair/noise", turn, z.dtype)
                ghat = torch.where(per_row(blind, z), noise, ghat)
            threat: Any = p.threat
            new = p.project(z + per_row(self.step * threat.scale(p.x_alive), z) * threat.steepest(ghat))
            moved = nonzero(new - z)
            now = value.clone()
            i = (open_rows(p, q, 1) & (moved | ~trusts)).nonzero().flatten()
            now[i] = q.ask(new[i], i)[1].to(now)
            holds = (now >= value) | (self.q == 0)
            taken = holds | ~(trusts | blind)  # where L rises, steps of the trusted prior and of chance are undone
            z, value = torch.where(per_row(taken, z), new, z), torch.where(taken, now, value)
            end[p.alive] = z
            trusts = trusts & moved & holds
            sigma = torch.where(flat, (sigma * _GROWTH).clamp_max(1), sigma)
            stay = open_rows(p, q, 1) & (moved | (self.q > 0))
            z, value, trusts, sigma = p.keep_only(stay, z, value, trusts, sigma)
            turn += 1
        p.notes["zero_differences"] = estimate.silent / estimate.asked  # 0 / 0: NaN
        return end

    def _prior(self, p: Problem) -> Prior | None:
        if self.substitute is None:
            return None
        lists: Any = p.model
        return prior_of(loaded(self.substitute), lists.engine, lists.ids(p.clean.logits), p, self.gain, self.images)
