"""Attacks on search engines without a prior, to compare QAIR with: SimBA and NES on the relevance of the list."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from withstand.attacks.engine import Attack, AttackResult, Problem
from withstand.attacks.engine.needs import needs_positive, needs_whole
from withstand.attacks.engine.queries import Queries
from withstand.attacks.pgd import needs_fixed_set
from withstand.attacks.retrieval.estimate import open_rows
from withstand.attacks.retrieval.relevance import Gain, Lists, Relevance
from withstand.errors import bad
from withstand.models.retrieval import RetrievalTarget
from withstand.registry import component
from withstand.threats import Linf, ThreatField, per_row


class OnLists(Attack):
    """What attacks on a search engine share that shows its top-k list and nothing else: the relevance of the clean list
    falls until none of its items is returned. Every question counts, the clean one included."""

    queries: int
    gain: Gain

    @property
    def objective(self) -> Relevance:
        """Minus the relevance of the clean list."""
        return Relevance(self.gain)

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> AttackResult:
        """See `Attack.run`. model: a retrieval target, or a function of images [N, C, H, W] to lists of ids. Labels play no
        part."""
        if isinstance(model, nn.Module) or getattr(model, "task", "retrieval") != "retrieval":
            raise bad("model", f"{type(model).__name__}, which returns no lists", "a retrieval engine",
                      "E.g. load_model('http://.../retrieve', task='retrieval'), or RetrievalTarget(fn, k).")  # fmt: skip
        engine = model if hasattr(model, "task") else RetrievalTarget(model)
        self.refuse(engine, x[:1])
        return super().run(Lists(engine), x, None, **context)

    def needs_queries(self) -> None:
        """Refuse a set without a bound, and a budget that the clean list uses up."""
        needs_fixed_set(self)
        if self.queries < 2:
            raise bad("queries", self.queries, "a whole number >= 2", "The clean list costs the first one.")


@component("attack", "simba_lists", systems=("qair",))
class SimBALists(OnLists):
    """SimBA on a search engine's lists: one direction after the other, forwards, else backwards, kept where relevance falls.

    z <- P(z + s * step * eps * u), u the next of a random order of directions, s = 1 first, then -1; kept where
    L(z) = sum_i w_i w_pos(i) falls. Two questions at most for each direction.

    basis: "pixel", single values; "dct", cosines of the lowest half of the frequencies of each channel, at most 1 anywhere.
    step: as a share of eps.

    Reference: Guo, Gardner, You, Wilson, Weinberger, "Simple Black-box Adversarial Attacks", 2019, arXiv 1905.07121 (there
    on class probabilities, and in no ball).
    """

    threat: ThreatField = Linf(8 / 255)
    queries: int = 200
    basis: Literal["pixel", "dct"] = "dct"
    step: float = 1.0
    gain: Gain = "auto"

    access = "top_k"

    def __post_init__(self) -> None:
        self.needs_queries()
        needs_positive(self, "step")

    def search(self, p: Problem) -> Tensor:
        q, end, turn = Queries(p, self.queries), p.x.clone(), 0
        z, value = end.clone(), p.best_value.clone()
        shape, threat = tuple(p.x.shape[1:]), p.threat
        order = p.rows.uniform((len(self._directions(p.x[:1])),), "simba", dtype=torch.float64).argsort(1)
        while not p.finished:
            u = self._directions(z)[order[:, turn % order.shape[1]]].reshape(len(z), *shape)
            open_ = open_rows(p, q, 1)
            for sign in (1.0, -1.0):
                length = per_row(sign * self.step * threat.scale(p.x_alive), z)
                new = p.project(z + length * u)
                i = (open_ & open_rows(p, q, 1)).nonzero().flatten()
                now = value.clone()
                now[i] = q.ask(new[i], i)[1].to(now)
                falls = now > value
                z, value = torch.where(per_row(falls, z), new, z), torch.where(falls, now, value)
                open_ = open_ & ~falls
            end[p.alive] = z
            z, value, order = p.keep_only(open_rows(p, q, 1), z, value, order)
            turn += 1
        return end

    def _directions(self, x: Tensor) -> Tensor:
        """All of them, [D, C * H * W], of largest value 1."""
        size = x[0].numel()
        if self.basis == "pixel":
            return torch.eye(size, dtype=x.dtype, device=x.device)
        c, h, w = x.shape[1:]
        lines = [_cosines(side, x)[: (side + 1) // 2] for side in (h, w)]
        waves = torch.einsum("ai,bj->abij", *lines).reshape(-1, 1, h * w)
        channels = torch.eye(c, dtype=x.dtype, device=x.device)
        made = torch.einsum("cd,fo->cfdo", channels, waves[:, 0]).reshape(-1, size)
        return made / made.abs().amax(1, keepdim=True)


@component("attack", "nes_lists", systems=("qair",))
class NESLists(OnLists):
    """NES on a search engine's lists: steps along a gradient that is estimated from pairs of opposite directions.

    g = 1/(2 pairs) sum_b (L(P(z - sigma u_b)) - L(P(z + sigma u_b))) / sigma * u_b, u_b random unit vectors;
    z <- P(z + step * eps * steepest(g)), and one question there. Where no pair tells a difference the step is random.

    sigma: length of a probe, as a share of the length of a sign step, as for `qair`. step: as a share of eps.

    Reference: Ilyas, Engstrom, Athalye, Lin, "Black-box Adversarial Attacks with Limited Queries and Information", 2018,
    arXiv 1804.08598 (there on class probabilities).
    """

    threat: ThreatField = Linf(8 / 255)
    queries: int = 200
    pairs: int = 3
    sigma: float = 0.8
    step: float = 0.2
    gain: Gain = "auto"

    access = "top_k"

    def __post_init__(self) -> None:
        self.needs_queries()
        needs_whole(self, "pairs")
        needs_positive(self, "sigma", "step")

    def search(self, p: Problem) -> Tensor:
        q, end, turn = Queries(p, self.queries), p.x.clone(), 0
        z, shape = end.clone(), tuple(p.x.shape[1:])
        while not p.finished:
            threat: Any = p.threat
            length = self.sigma * threat.scale(p.x_alive) * threat.steepest(torch.ones_like(z)).flatten(1).norm(dim=1)
            ghat = torch.zeros_like(z)
            for b in range(self.pairs):
                u = p.rows.normal(shape, "nes", turn * (self.pairs + 1) + b, z.dtype)
                u = u / per_row(u.flatten(1).norm(dim=1), u)
                i = open_rows(p, q, 3).nonzero().flatten()
                ends = [p.project(z + s * per_row(length, z) * u)[i] for s in (1.0, -1.0)]
                _, there = q.ask(torch.cat(ends), i.repeat(2))
                forth, back = there.chunk(2)
                ghat[i] += per_row((forth - back) / length[i].to(forth), u[i]).to(z) * u[i]
            blind = ~(ghat != 0).flatten(1).any(1)
            noise = p.rows.normal(shape, "nes", turn * (self.pairs + 1) + self.pairs, z.dtype)
            ghat = torch.where(per_row(blind, z), noise, ghat)
            new = p.project(z + per_row(self.step * threat.scale(p.x_alive), z) * threat.steepest(ghat))
            i = open_rows(p, q, 1).nonzero().flatten()
            z = z.index_copy(0, i, new[i])
            q.ask(z[i], i)
            end[p.alive] = z
            z = p.keep_only(open_rows(p, q, 1), z)
            turn += 1
        return end


def _cosines(side: int, like: Tensor) -> Tensor:
    """Row f: cos(pi (i + 1/2) f / side) at the pixels i, [side, side]."""
    i = torch.arange(side, dtype=torch.float64, device=like.device)
    return torch.cos(torch.pi * (i + 0.5) * i[:, None] / side).to(like.dtype)
