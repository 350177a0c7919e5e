"""Black-box access to a block: counted queries, a budget for each example, the distance found against queries spent."""

import torch
from torch import Tensor

from withstand.attacks.engine.problem import Problem
from withstand.errors import bad


class Queries:
    """The questions that a black-box attack asks of its problem.

    Every question counts in `p.forwards`, the clean pass included; no row asks more than `budget` times. The notes of the
    result get `trace_queries`, a tuple of T query counts, and `trace` [N, T], the distance of the closest point
    that was known after as many queries (infinite where there was none); for attacks that fill a given set `values` [N, T]
    instead, the objective at the best point known after each query.
    """

    def __init__(self, p: Problem, budget: int) -> None:
        if p.criterion is None:
            raise bad("objective", repr(p.objective), "an objective with a goal, such as margin()")
        self.p, self.budget, self._reached = p, budget, p.criterion
        near = p.nearest
        counts = sorted({budget >> i for i in range(budget.bit_length())}) if near else range(1, budget + 1)
        self._counts = tuple(counts)
        self._grid = torch.tensor(self._counts, device=p.x.device)
        self._trace = torch.full((len(p.x), len(self._grid)), torch.inf, dtype=p.x.dtype, device=p.x.device)
        p.notes.update({"trace" if near else "values": self._trace, "trace_queries": self._counts})
        p.clean  # noqa: B018 (the first question)
        self._known = p.best_distance if near else p.best_value
        self._record(p.alive)

    @property
    def left(self) -> Tensor:
        """How many questions each alive row may still ask, [A]."""
        return self.budget - self.p.forwards[self.p.alive]

    def ask(self, z: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whether inputs z [M, ...] reach the goal, bool [M], and the objective there, [M]; one model call for all.

        at: int64 [M], the alive rows that the points belong to; a row may come several times. None: one point for each.
        Rows whose questions of this call do not fit into their budget are not asked: they get False and -inf.
        """
        p = self.p
        at = torch.arange(len(p.alive), device=z.device) if at is None else at
        won = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        value = torch.full((len(z),), -torch.inf, dtype=z.dtype, device=z.device)
        asked = torch.bincount(at, minlength=len(p.alive))
        fits = (asked <= self.left)[at].nonzero().flatten()
        if len(fits) == 0:
            return won, value
        z, at = z[fits], at[fits]
        with torch.no_grad():
            seen = p._see(z)
            y, state = p.y_alive[at], {k: v[at] for k, v in p.state.items()}
            now = p.objective(seen, y, state).to(z.dtype)
            hit = self._reached(seen, y, state)
        p._refuse_nan(seen, now)
        rows = p.alive[at]
        p.forwards.index_add_(0, rows, torch.ones_like(rows))
        first = _closest(p, rows, z, hit) if int(asked.max()) > 1 else slice(None)
        p._keep_better(rows[first], z[first], hit[first], now[first])
        self._record(rows)
        won[fits], value[fits] = hit, now
        return won, value

    def _record(self, rows: Tensor) -> None:
        p = self.p
        before = p.forwards[rows, None] <= self._grid
        self._trace[rows] = torch.where(before, self._known[rows, None].to(self._trace), self._trace[rows])


def _closest(p: Problem, rows: Tensor, z: Tensor, hit: Tensor) -> Tensor:
    """For each row that comes in `rows` [M], the position of its closest winning point (of any point if none won)."""
    distance = torch.where(hit, p._threat.take(rows).distance(p.x[rows], z), torch.inf)
    order = distance.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    sorted_rows = rows[order]
    return order[torch.cat([sorted_rows.new_ones(1).bool(), sorted_rows[1:] != sorted_rows[:-1]])]
