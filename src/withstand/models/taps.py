"""What lies inside a classifier: what its last layer reads, the last map before the pool, its stages."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from withstand.errors import bad, unknown
from withstand.models.state import frozen
from withstand.models.target import core


@dataclass(frozen=True)
class Tap:
    """A place in a model: what goes into, or comes out of, the submodule `name` ("" is the model itself)."""

    name: str
    side: Literal["input", "output"] = "output"


def see(model: nn.Module, x: Tensor, *taps: Tap) -> tuple[Tensor, *tuple[Tensor, ...]]:
    """The logits of one forward pass, and what it had at the taps, with their graph; nothing stays on the model.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> logits, hidden = see(net, torch.ones(5, 1, 2, 2), Tap("2"))
    >>> hidden.shape
    torch.Size([5, 3])

    Where a submodule runs several times, its last run counts. Raises: BadInput for a tap that the pass did not reach.
    """
    found: dict[Tap, Tensor] = {}

    def note(h: Tensor, tap: Tap) -> Tensor:
        found[tap] = h
        return h.clone()  # the pass goes on with the copy, into which an in-place activation may write

    with ExitStack() as stack:
        for tap in taps:
            stack.enter_context(_noting(submodule(model, tap.name), tap.side, lambda h, tap=tap: note(h, tap)))
        logits = model(x)
    for tap in taps:
        if tap not in found:
            raise bad("features", repr(tap.name), "a submodule that runs in every forward pass")
    return logits, *(found[tap] for tap in taps)


def penultimate(model: nn.Module, x: Tensor, name: str | None = None) -> Tap:
    """Where the pooled features are: what the layer that makes the logits reads, or what the submodule `name` returns.

    x: a few inputs for a forward pass in eval mode, which leaves no trace. `vectors` makes [N, D] of what is read.
    Raises: BadInput where there is no such layer.
    """
    if name is not None:
        return Tap(within(model, name))
    return Tap(_name_of(model, head(model, x)), "input")


def last_map(model: nn.Module, x: Tensor, name: str | None = None) -> Tap:
    """Where the last map [N, D, H, W] before the pool and the head comes out of a submodule, or the output of `name`.

    Maps of a single pixel are taken for pooled. An activation that is no module is not seen: in networks that end in a
    functional ReLU, the map is what goes into it. Raises: BadInput where no submodule returns such a map.
    """
    tap = Tap(within(model, name)) if name is not None else None
    if tap is None:
        last, maps = head(model, x), list[str]()
        done: list[bool] = []

        def note(h: Tensor, at: str) -> None:
            if not done and h.dim() == 4 and h[0, 0].numel() > 1:
                maps.append(at)
            elif not done and h.dim() == 3:  # tokens: what was a map before is none any more
                maps.clear()

        with ExitStack() as stack:
            stack.enter_context(_noting(last, "input", lambda _: done.append(True)))
            for at, part in model.named_modules():
                stack.enter_context(_noting(part, "output", lambda h, at=at: note(h, at)))
            _probe(model, x)
        tap = Tap(maps[-1]) if maps else None
    with torch.no_grad(), frozen(model):
        if tap is None or see(model, x, tap)[1].dim() != 4:
            got = type(model).__name__ if name is None else repr(name)
            raise bad(
                "features", got, "a submodule that returns a map [N, D, H, W]", "Name one, e.g. features='layer4'."
            )
    return tap


def stages(model: nn.Module, x: Tensor, count: int) -> tuple[str, ...]:
    """The submodules that end the first `count` stages of a convolutional network, by name.

    The children that hold convolutions are its stages (`layer1`, `layer2` of a ResNet); where there are fewer than `count`
    of them, a stage ends where the maps grow smaller. Wrappers are seen through. Raises: BadInput where there are too few.
    """
    level, path = model, ""
    while len(inner := [(n, c) for n, c in level.named_children() if _nested(c)]) == 1 and not _convs(level):
        path, level = f"{path}{inner[0][0]}.", inner[0][1]
    sizes: dict[str, torch.Size] = {}
    with ExitStack() as stack:
        for name, child in level.named_children():

            def note(h: Tensor, name: str = name) -> None:
                if h.dim() == 4 and h[0, 0].numel() > 1:
                    sizes[name] = h.shape[2:]

            stack.enter_context(_noting(child, "output", note))
        _probe(model, x)
    found = [n for n, _ in inner if n in sizes]
    if len(found) < count:
        ran = list(sizes)
        found = [n for n, after in zip(ran, [*ran[1:], None]) if after is None or sizes[after] != sizes[n]]
    if len(found) < count:
        raise bad("layers", type(model).__name__, f"a network of {count} stages or more", "Name the layers.")
    return tuple(path + name for name in found[:count])


def blocks(model: nn.Module, x: Tensor, most: int = 4) -> tuple[str, ...]:
    """The last `most` parts with weights before the head, by name: the children of a network that return a tensor for
    each input in a forward pass of x, in the order in which they run. Wrappers are seen through. May be empty.
    """
    level, path = model, ""
    while len(inner := _weighted(level)) == 1 and any(True for _ in inner[0][1].children()):
        path, level = f"{path}{inner[0][0]}.", inner[0][1]
    last, ran = head(model, x), dict[str, None]()
    with ExitStack() as stack:
        for name, child in inner:

            def note(h: Tensor, name: str = name) -> None:
                if h.dim() >= 2 and len(h) == len(x):
                    ran[name] = None

            if all(part is not last for part in child.modules()):
                stack.enter_context(_noting(child, "output", note))
        _probe(model, x)
    return tuple(path + name for name in list(ran)[-most:])


def vectors(h: Tensor) -> Tensor:
    """Features as [N, D]: the mean over pixels [N, D, H, W] or tokens [N, T, D]."""
    return h.flatten(2).mean(2) if h.dim() == 4 else h.flatten(1, -2).mean(1) if h.dim() > 2 else h


def head(model: nn.Module, x: Tensor) -> nn.Module:
    """The layer that makes the logits: what timm's `get_classifier` names, else the last linear layer that a forward pass
    of x calls, else the last convolution (networks that end in a pool). Raises BadInput where there is none of them.
    """
    for part in model.modules():
        if callable(getter := getattr(part, "get_classifier", None)):
            named = getter()
            if isinstance(named, (nn.Linear, nn.Conv2d)):
                return named
    called: dict[type, nn.Module] = {}
    with ExitStack() as stack:
        for part in model.modules():
            for kind in (nn.Linear, nn.Conv2d):
                if isinstance(part, kind):
                    note = lambda _, part=part, kind=kind: called.update({kind: part})  # noqa: E731
                    stack.enter_context(_noting(part, "input", note))
        _probe(model, x)
    if not called:
        raise bad("model", type(model).__name__, "a model with a linear layer or a convolution before its logits")
    return called.get(nn.Linear, called.get(nn.Conv2d))  # type: ignore[return-value]


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The submodule with this name. Raises: BadInput with the nearest names."""
    parts = dict(model.named_modules())
    if name not in parts:
        raise unknown("submodule of the model", name, (n for n in parts if n))
    return parts[name]


def within(model: nn.Module, name: str) -> str:
    """The name that a module has for a part which the architecture inside its wrappers calls `name`; its own names are
    taken as they are. Raises: BadInput with the nearest names."""
    inside = dict(core(model).named_modules())
    return _name_of(model, inside[name] if name in inside else submodule(model, name))


def _name_of(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


def _weighted(level: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in level.named_children() if any(True for _ in child.parameters())]


def _convs(level: nn.Module) -> bool:
    return any(isinstance(c, nn.Conv2d) for c in level.children())


def _nested(part: nn.Module) -> bool:
    """Whether a part is more than a layer, and convolutional."""
    return not isinstance(part, nn.Conv2d) and any(isinstance(m, nn.Conv2d) for m in part.modules())


def _probe(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), frozen(model):
        model(x)


@contextmanager
def _noting(part: nn.Module, side: str, note: Callable[[Tensor], Any]) -> Iterator[None]:
    """Have `note` called with the tensor that goes into or comes out of a part, whose place a tensor that it returns
    takes; other types are passed over."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        instead = kept(args[0] if args else next(iter(kwargs.values()), None))
        if instead is None:
            return None
        return ((instead, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): instead})

    def kept(h: Any) -> Any:
        return note(h) if isinstance(h, Tensor) else None

    if side == "input":
        handle = part.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = part.register_forward_hook(lambda _, __, output: kept(output))
    try:
        yield
    finally:
        handle.remove()
