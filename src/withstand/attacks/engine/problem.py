"""One block of examples under attack: everything that a search may ask, and everything that is remembered for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from withstand.attacks.engine.outputs import check_output, needs_gradient, see, usable
from withstand.errors import bad
from withstand.objectives import as_objective
from withstand.protocols import Leaf, Seen
from withstand.random import Rows
from withstand.threats import Box, Threat, per_row

Point = Tensor | dict[str, Tensor]


class Problem:
    """The search's view of a block.

    Fixed: x [N, ...] and y of the whole block. Alive: `alive` int64 [A], the rows still searched; `x_alive`, `y_alive`,
    `threat`, `rows`, `state` hold their part only. A search asks `gradient`, `value` or `look` at points of the alive
    rows; every answer is remembered: the best point of each row, whether it reached the goal, and what it cost. Rows
    that need no more work leave through `drop_done`.

    Points are tensors [A, ...] of inputs, or, with a parameterisation, dicts of leaves.

    memory: what shapings (under (position, name of the leaf)) and views keep between steps, one row for each alive one.
    size: of the last step, in units of the threat's scale; 0 before the first.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        x: Tensor,
        y: Tensor | None,
        rows: Rows,
        *,
        threat: Threat,
        objective: Any,
        criterion: Any = None,
        parameterisation: Any = None,
        views: Sequence[Any] = (),
        shapings: Sequence[Any] = (),
        box: Box = (0.0, 1.0),
        keep: str = "best",
        active: bool = True,
        nearest: bool = False,
        precision: torch.dtype | None = None,
    ) -> None:
        self.model, self.x, self.box, self.keep, self.nearest = model, x, box, keep, nearest
        self._labels, self._checked, self._clean = y, False, None
        self._set_objective(objective, criterion)
        self.parameterisation, self.shapings, self.precision = parameterisation, tuple(shapings), precision
        self.active = active and self.criterion is not None and not getattr(self.objective, "coupled", False)
        self._threat, self._rows = threat, rows
        n, device = len(x), x.device
        self.best = x.clone()
        self.best_value = torch.full((n,), -torch.inf, device=device)
        self.best_distance = torch.full((n,), torch.inf, device=device, dtype=x.dtype)
        self.won = torch.zeros(n, dtype=torch.bool, device=device)
        self._passes = torch.zeros(2, n, dtype=torch.int64, device=device)
        self._uncounted = [0, 0]
        self.hit = torch.zeros_like(self.won)  # reached the goal since the last restart
        self.cost_at_win = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.steps = 0
        self.notes: dict[str, Any] = {}
        self.memory: dict[Any, Tensor | None] = {}
        self.size: float | Tensor = 0.0
        self._scratch: dict[str, Tensor] = {}
        self._fresh_wins, self._remembers = False, "best"
        if y is None and not self._classifies:
            y = torch.full((n,), -1, device=device)
        self.y = y if y is not None else self.clean.logits.argmax(1)
        if y is None:
            self._remember_clean()
        self._oracle = self._exact_gradient
        for view in reversed(tuple(views)):
            wrap = getattr(view, "wrap", None)
            self._oracle = wrap(self._oracle, self) if wrap is not None else view(self._oracle)
        self._viewed = bool(views)
        self._select(torch.arange(n, device=device))

    def _set_objective(self, objective: Any, criterion: Any = None) -> None:
        self.objective = as_objective(objective)
        self.criterion = criterion if criterion is not None else getattr(self.objective, "criterion", None)
        self._classifies = getattr(self.objective, "classifies", True)
        if self.nearest and self.criterion is None:
            allowed = "one with a goal, e.g. margin, or the search inside a given set, e.g. pgd"
            raise bad("objective", repr(self.objective), allowed, "There is no nearest point without a goal.")
        reads = getattr(self.objective, "reads", ("logits",))
        self._features = tuple(r for r in reads if r not in {"logits", "input"})
        self._state: dict[str, Tensor] | None = None
        self._alive_state: dict[str, Tensor] | None = None

    def aim(self, objective: Any) -> None:
        """Pursue another objective from here on (another target, say); what is remembered stays."""
        self._set_objective(objective)

    # What is alive ---------------------------------------------------------------------------------------------------

    def _select(self, alive: Tensor) -> None:
        self._count()
        self.alive = alive
        whole = len(alive) == len(self.x)
        self.x_alive = self.x if whole else self.x[alive]
        self.y_alive = self.y if whole else self.y[alive]
        self.threat = self._threat if whole else self._threat.take(alive)
        self.rows = self._rows if whole else self._rows.take(alive)
        self._alive_state = None
        interval = getattr(self.threat, "interval", None)
        self._interval = interval(self.x_alive, self.box) if interval and self.threat.eps is not None else None

    @property
    def state(self) -> dict[str, Tensor]:
        """What the objective's `begin` returned, for the alive rows."""
        if self._alive_state is None:
            state = self._begun()
            whole = len(self.alive) == len(self.x)
            self._alive_state = state if whole else {k: v[self.alive] for k, v in state.items()}
        return self._alive_state

    def _begun(self) -> dict[str, Tensor]:
        if self._state is None:
            begin = getattr(self.objective, "begin", None)
            self._state = dict(begin(self.clean, self.y, self._rows)) if begin else {}
        return self._state

    @property
    def finished(self) -> bool:
        """Whether no row is left."""
        return len(self.alive) == 0

    def drop_done(self, *held: Any) -> Any:
        """Let the rows leave that reached their goal, and cut `held` (tensors [A, ...], dicts of them, None) to the
        rest.

        Returns the held values: one as itself, several as a tuple.
        """
        if self._fresh_wins and self.active and not self.nearest:
            held = tuple(self.keep_only(~self.won[self.alive], *held, single=False))
            self._fresh_wins = False
        return held[0] if len(held) == 1 else held

    def keep_only(self, stay: Tensor, *held: Any, single: bool = True) -> Any:
        """Let rows leave by a mask bool [A] of those that stay; `held` is cut likewise."""
        index = stay.nonzero().flatten()
        self.memory = {k: None if m is None else m[index] for k, m in self.memory.items()}
        self.size = self.size[index] if isinstance(self.size, Tensor) else self.size
        self._select(self.alive[index])
        cut = tuple(_cut(h, index) for h in held)
        return cut[0] if single and len(cut) == 1 else cut

    def restart(self) -> None:
        """Bring back every row that has not reached its goal (all rows where none may leave); forget the shapings'
        memory."""
        everyone = torch.arange(len(self.x), device=self.x.device)
        self._select(everyone[~self.won] if self.active and not self.nearest else everyone)
        self._fresh_wins = False
        self.memory.clear()
        self.hit.zero_()

    # Looking ---------------------------------------------------------------------------------------------------------

    @property
    def clean(self) -> Seen:
        """What the model makes of the clean block; costs one forward pass, once."""
        if self._clean is None:
            with torch.no_grad():
                self._clean = self._see(self.x)
            self._passes[0] += 1
            if hasattr(self, "y"):
                self._remember_clean()
        return self._clean

    def _remember_clean(self) -> None:
        value = self.objective(self.clean, self.y, self._begun())
        everyone = torch.arange(len(self.x), device=self.x.device)
        self._remember(everyone, self.x, self.clean, value, self._begun())

    def gradient(self, z: Point) -> Point:
        """The objective's gradient at z, shaped by the shapings; z itself is remembered as a candidate."""
        leaves = z if isinstance(z, dict) else {"x": z}
        if isinstance(z, dict) and self.parameterisation is not None:
            found = self._through(leaves)
        else:
            found = {"x": self._through_views(leaves["x"])[0]}
            if self._viewed and (self.active or self.keep == "best"):
                self.look(leaves["x"])
        self.steps += 1
        shaped = {}
        for name, gradient in found.items():
            for position, shaping in enumerate(self.shapings):
                gradient, self.memory[position, name] = shaping(gradient, self.memory.get((position, name)))
            shaped[name] = gradient
        return shaped if isinstance(z, dict) else shaped["x"]

    def value_and_gradient(
        self, z: Tensor, remember: Literal["best", "wins", "nothing"] = "best"
    ) -> tuple[Tensor, Tensor]:
        """The objective's value [A] and its unshaped gradient [A, ...] at inputs z.

        remember: "wins" keeps z only where it reaches the goal, for searches that follow their own best point and `offer`
        it in the end; "nothing" is for points outside the set.
        """
        self._remembers = remember
        gradient, value = self._through_views(z)
        self.steps += 1
        if self._viewed and (self.active or self.keep == "best"):
            self.look(z)
        self._remembers = "best"
        return value, gradient

    def value(self, z: Point) -> Tensor:
        """The objective's value at z, [A]; one forward pass."""
        return self.look(z)[1]

    def look(self, z: Point) -> tuple[Seen, Tensor]:
        """What the model makes of z, and the objective's value there; one forward pass, remembered."""
        points = self.decode(z)
        seen, value = self.peek(points)
        self._remember(self.alive, points, seen, value, self.state)
        return seen, value

    def peek(self, points: Tensor) -> tuple[Seen, Tensor]:
        """`look` at inputs of the alive rows without remembering them; one forward pass."""
        with torch.no_grad():
            seen = self._see(points)
            value = self.objective(seen, self.y_alive, self.state)
        self._refuse_nan(seen, value)
        self.passes(1)
        return seen, value

    def broken(self, seen: Seen) -> Tensor:
        """Whether the goal is reached in a pass of the alive rows, bool [A]."""
        if self.criterion is None:
            return torch.zeros(len(seen.input), dtype=torch.bool, device=self.x.device)
        return self.criterion(seen, self.y_alive, self.state)

    def confirm(self, model: Callable[[Tensor], Any]) -> Tensor:
        """Let another model judge the points that reached the goal: the one that the searched one stood for.

        Returns which rows of the block lost their point by that, bool [N].
        """
        self.model, before = model, self.won.clone()
        self._select(self.won.nonzero().flatten())
        if not self.finished:
            self.won[self.alive] = self.broken(self.peek(self.best[self.alive])[0])
        return before & ~self.won

    def passes(self, forwards: int = 0, backwards: int = 0) -> None:
        """Count passes that the search made itself on the alive rows."""
        self._uncounted[0] += forwards
        self._uncounted[1] += backwards

    def _count(self) -> None:
        for kind, number in enumerate(self._uncounted):
            if number and len(self.alive) == len(self.x):
                self._passes[kind] += number
            elif number:
                self._passes[kind, self.alive] += number
        self._uncounted = [0, 0]

    @property
    def forwards(self) -> Tensor:
        """Forward passes spent on each row of the block, int64 [N]."""
        self._count()
        return self._passes[0]

    @property
    def backwards(self) -> Tensor:
        """Backward passes spent on each row of the block, int64 [N]."""
        self._count()
        return self._passes[1]

    def offer(self, z: Tensor, won: Tensor, value: Tensor | None = None) -> None:
        """Remember inputs z [A, ...] that the search has judged itself: won bool [A]; value [A], its objective
        there."""
        self._keep_better(self.alive, z.detach(), won, value if value is not None else won.to(z.dtype))

    def scratch(self, name: str, like: Tensor) -> Tensor:
        """Memory of the shape of `like` under a name, to be written over: new memory is what costs most in a step."""
        held = self._scratch.get(name)
        if held is None or held.shape != like.shape:
            held = self._scratch[name] = torch.empty_like(like)
        return held

    # Moving ----------------------------------------------------------------------------------------------------------

    def start(self, random: bool | float = True, stream: str = "start", step: int = 0) -> Point:
        """Where a search begins: the clean point, a random one of the set, or (a float) Gaussian noise of that standard
        deviation around the clean point, projected into the set."""
        if self.parameterisation is None:
            if not random:
                return self.x_alive.clone()
            return self._random(self.threat, self.x_alive, random, stream, step, self.box)
        return {
            name: self._random(leaf.threat, leaf.origin, random, f"{stream}/{name}", step, leaf.box)
            if random
            else leaf.origin.clone()
            for name, leaf in self._leaves().items()
        }

    def step(self, z: Point, gradient: Point, size: float | Tensor) -> Point:
        """One steepest step of the given size (in units of the threat's scale), projected back into the set.

        The gradient is used up: its memory may hold the result.
        """
        self.size = size
        if isinstance(z, dict) and isinstance(gradient, dict):
            moved: dict[str, Tensor] = {}
            for name, leaf in self._leaves().items():
                length = per_row(leaf.threat.scale(leaf.origin) * size, z[name])
                target = z[name] + length * leaf.threat.steepest(gradient[name])
                moved[name] = leaf.threat.project(target, leaf.origin, leaf.box)
            return moved
        assert isinstance(z, Tensor)
        assert isinstance(gradient, Tensor)
        if self._interval is not None and isinstance(size, float) and isinstance(self.threat.eps, float):
            # Linf: in the gradient's own memory where no shaping remembers it; small models feel every new tensor
            own = gradient.is_contiguous() and not self.shapings
            moved_ = torch.sign(gradient, out=gradient if own else None)
            return self.project_(torch.add(z, moved_, alpha=self.threat.eps * size, out=moved_))
        direction = self._threat_can("steepest")(gradient)
        return self.project(z + per_row(self.threat.scale(self.x_alive) * size, z) * direction)

    def project(self, z: Tensor) -> Tensor:
        """The nearest point of the set inside the box."""
        if self._interval is not None:
            return torch.clamp(z, *self._interval)
        return self._threat_can("project")(z, self.x_alive, self.box)

    def project_(self, z: Tensor) -> Tensor:
        """`project` that may use z's own memory for the result."""
        return torch.clamp(z, *self._interval, out=z) if self._interval is not None else self.project(z)

    def decode(self, z: Point) -> Tensor:
        """The input that z stands for."""
        return self.parameterisation.decode(z, self.x_alive) if isinstance(z, dict) else z

    def _threat_can(self, method: str) -> Callable[..., Tensor]:
        return getattr(self.threat, method)

    def _random(self, threat: Any, origin: Tensor, how: bool | float, stream: str, step: int, box: Box) -> Tensor:
        if how is True:
            return threat.random_start(origin, self.rows, stream, step, box)
        noise = self.rows.normal(tuple(origin.shape[1:]), stream, step, origin.dtype)
        return threat.project(origin + how * noise, origin, box)

    def _leaves(self) -> Mapping[str, Leaf]:
        return self.parameterisation.leaves(self.x_alive, self.threat, self.box)

    # Inside ----------------------------------------------------------------------------------------------------------

    def _exact_gradient(self, x: Tensor, rows: Rows, step: int) -> tuple[Tensor, Tensor]:
        """The oracle at the bottom of all views: one forward and one backward pass. Counts and remembers."""
        point = x.detach().requires_grad_(True)
        with torch.enable_grad():
            seen = self._see(point)
            value = self.objective(seen, self.y_alive, self.state)
            needs_gradient(value)
            total = value.sum()
            (gradient,) = torch.autograd.grad(total, point)
        self.passes(1, 1)
        if not math.isfinite(total.detach()):
            self._refuse_nan(seen, value)
        if not self._viewed:
            self._remember(self.alive, x.detach(), seen, value.detach(), self.state)
        return usable(gradient), value.detach()

    def _through_views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = self._oracle(x, self.rows, self.steps)
        return usable(gradient) if self._viewed else gradient, value

    def _through(self, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients with respect to the leaves: through the views to the input, then back through the decoder."""
        leaves = {name: leaf.detach().requires_grad_(True) for name, leaf in z.items()}
        with torch.enable_grad():
            points = self.parameterisation.decode(leaves, self.x_alive)
        gradient, _ = self._through_views(points.detach())
        if self._viewed and (self.active or self.keep == "best"):
            self.look(points.detach())
        found = torch.autograd.grad(points, list(leaves.values()), gradient, allow_unused=True)
        return {k: torch.zeros_like(v) if g is None else usable(g) for (k, v), g in zip(leaves.items(), found)}

    def _see(self, points: Tensor) -> Seen:
        seen = see(self.model, points, self._features, self.precision)
        if not self._checked:
            self._checked = True
            check_output(seen.logits, points)
            labels = self._labels if self._classifies else None
            if labels is not None and labels.dim() == 1 and int(labels.max()) >= seen.logits.shape[1]:
                raise bad(
                    "y",
                    f"a label of {int(labels.max())}",
                    f"labels below {seen.logits.shape[1]}, the model's classes",
                    "Is this the right data set for this model?",
                )
        return seen

    def _refuse_nan(self, seen: Seen, value: Tensor) -> None:
        if not bool(torch.isfinite(value).all()):
            check_output(seen.logits, seen.input)

    def _remember(self, rows: Tensor, points: Tensor, seen: Seen, value: Tensor, state: Mapping[str, Tensor]) -> None:
        if self._remembers == "nothing" or (self.keep == "last" and not self.active):
            return
        if self.criterion is None:
            won = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        else:
            y = self.y if len(rows) == len(self.y) else self.y[rows]
            with torch.no_grad():
                won = self.criterion(Seen(points, _detached(seen.logits), seen.features), y, state)
        self._keep_better(rows, points, won, value.detach())

    def _keep_better(self, rows: Tensor, points: Tensor, won: Tensor, value: Tensor) -> None:
        """A point replaces the remembered one when it wins first, rises while nothing won, or (nearest) wins closer."""
        value = value.to(self.best_value.dtype)
        whole = len(rows) == len(self.x)
        had, any_won = self.won if whole else self.won[rows], bool(won.any())
        if self.nearest:
            if not any_won:
                return
            threat, x = (self._threat, self.x) if whole else (self._threat.take(rows), self.x[rows])
            distance = threat.distance(x, points)
            better = won & (distance < self.best_distance[rows])
            self.best_distance[rows] = torch.where(better, distance, self.best_distance[rows])
        elif self._remembers == "best":
            better = ~had & (won | (value > (self.best_value if whole else self.best_value[rows])))
        else:
            better = ~had & won
        if any_won:
            self.hit[rows] |= won
            new = rows[won & ~had]
            self.cost_at_win[new] = (self.forwards + self.backwards)[new]
            self.won[new] = True
            self._fresh_wins = True
        changes = int(better.sum())
        if whole and changes == len(rows):
            self.best.copy_(points)
            self.best_value.copy_(value)
        elif changes:
            index = better.nonzero().flatten()
            chosen = rows[index]
            self.best[chosen] = points[index]
            self.best_value[chosen] = value[index]


def _cut(held: Any, index: Tensor) -> Any:
    if held is None:
        return None
    return {k: v[index] for k, v in held.items()} if isinstance(held, dict) else held[index]


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else output
