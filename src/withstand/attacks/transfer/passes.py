"""Surrogates whose passes back, or both passes, are not the model's own: linear backpropagation and ghost networks."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from withstand.attacks.transfer.surrogates import _end, _module
from withstand.errors import bad
from withstand.models.target import TorchTarget, as_target, core
from withstand.threats import per_row


def linear_backward(model: Any, start: str | None = None) -> TorchTarget:
    """The model with ReLUs that pass gradients on unchanged from a module on (LinBP); the forward pass is untouched.

    start: the full name of the first module whose ReLUs are linear on the way back, with all that run after it; None: all.
    In residual blocks (modules with `conv1` and `conv2`) the gradient that leaves the branch at `conv1` gets, for each
    example, the length it would have had with the true ReLUs, since it outgrows that of the skip connection else. One more
    pass back through each such branch. Other nonlinearities stay as they are.

    Reference: Guo, Li, Chen, "Backpropagating Linearly Improves Transferability of Adversarial Examples", 2020, arXiv
    2012.03528.

    Raises:
        BadInput: for a name that is none of the modules', or a model without gradients.
    """
    target = as_target(model)
    module = _module(target)
    names = dict(core(module).named_modules())
    if start is not None and (start == "" or start not in names):
        raise bad("start", repr(start), f"a module's name, among {', '.join(list(names)[1:9])}, ...")
    return TorchTarget(_Linear(module, names[start] if start else None), f"{target.name}/linbp", target.space)


def ghost(model: Any, spread: float = 0.16, blocks: str | None = None) -> TorchTarget:
    """A new virtual network in every pass that gradients are taken of: its skip connections are scaled at random.

    Each channel of each example's skip connection is multiplied by a number uniform in [1 - spread, 1 + spread). Passes
    without gradients, such as those that judge points, are the model's own. The draws come from torch's generator, as
    those of dropout do, which attacks seed: a run repeats with the same examples per pass. blocks: a regular expression
    for the full names of residual blocks; None takes each module that has a `conv1` and a `conv2`. A block's input must
    enter the branch through `conv1` alone. The published form for networks without skip connections, dropout, is not
    offered.

    Reference: Li, Bai, Zhou, Xie, Zhang, Yuille, "Learning Transferable Adversarial Examples via Ghost Networks", 2020,
    arXiv 1812.03413.

    Raises:
        BadInput: for spread outside [0, 1), a model in which no block is found, or blocks of another form.
    """
    if not 0 <= spread < 1:
        raise bad("spread", spread, "a share in [0, 1)")
    target = as_target(model)
    module = _module(target)
    found = [
        part
        for name, part in core(module).named_modules()
        if name and _end(part) is not None and (blocks is None or re.fullmatch(blocks, name))
    ]
    if not found:
        names = [name for name, _ in core(module).named_modules() if name][:8]
        raise bad("blocks", repr(blocks), f"residual blocks with conv1 and conv2, among {', '.join(names)}, ...")
    return TorchTarget(_Ghost(module, found, spread), f"{target.name}/ghost", target.space)


# Linear on the way back ------------------------------------------------------------------------------------------------


class _Linear(nn.Module):
    def __init__(self, model: nn.Module, start: nn.Module | None) -> None:
        super().__init__()
        self.model, self.start = model, start
        self.blocks = tuple((part.conv1, end) for part in model.modules() if (end := _end(part)) is not None)
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return self.model(x)
        relus = _Relus(self.start is None)
        with ExitStack() as hooks:
            if self.start is not None:
                hooks.enter_context(self.start.register_forward_pre_hook(relus.begin))
            for entry, end in self.blocks:
                branch = _Branch(relus)
                hooks.enter_context(entry.register_forward_pre_hook(branch.enter))  # type: ignore[union-attr]
                hooks.enter_context(end.register_forward_hook(branch.leave))
            with relus:
                return self.model(x)


class _Relus(TorchFunctionMode):
    """While it lasts, ReLUs are those below. linear: whether they are, from here on. true: they are not after all."""

    KNOWN = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu_)

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear, self.true = linear, False

    def begin(self, *_: Any) -> None:
        self.linear = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.linear and func in self.KNOWN:
            return _Straight.apply(args[0] if args else (kwargs or {})["input"], self)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def as_they_are(self) -> Iterator[None]:
        self.true = True
        try:
            yield
        finally:
            self.true = False


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, relus: _Relus) -> Tensor:
        made = x.clamp_min(0)
        ctx.relus = relus
        ctx.save_for_backward(made)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (made,) = ctx.saved_tensors
        return (grads[0] * (made > 0) if ctx.relus.true else grads[0]), None


class _Branch:
    """One pass through the branch of a block: it measures the true gradient when the one from above arrives."""

    def __init__(self, relus: _Relus) -> None:
        self.relus, self.length = relus, None
        self.inside: Tensor | None = None

    def enter(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        if not self.relus.linear or not args[0].requires_grad:
            return None
        entered = args[0].view_as(args[0])
        entered.register_hook(self._rescale)
        self.inside = entered
        return (entered, *args[1:])

    def leave(self, _: nn.Module, args: Any, output: Tensor) -> Any:
        if self.inside is None:
            return None
        made = output.clone()  # blocks may add to it in place
        inside = self.inside

        def measure(above: Tensor) -> None:
            with self.relus.as_they_are():
                (true,) = torch.autograd.grad(output, inside, above, retain_graph=True)
            self.length = true.flatten(1).norm(dim=1)

        made.register_hook(measure)
        return made

    def _rescale(self, gradient: Tensor) -> Tensor | None:
        if self.relus.true or self.length is None:
            return None
        own = gradient.flatten(1).norm(dim=1)
        return gradient * per_row(torch.where(own > 0, self.length / own.clamp_min(1e-30), 1.0), gradient)


# Ghosts ----------------------------------------------------------------------------------------------------------------


class _Ghost(nn.Module):
    def __init__(self, model: nn.Module, blocks: list[nn.Module], spread: float) -> None:
        super().__init__()
        self.model, self.blocks, self.spread = model, tuple(blocks), spread
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return self.model(x)
        with ExitStack() as hooks:
            for block in self.blocks:
                skip = _Skip(self.spread)
                hooks.enter_context(block.register_forward_pre_hook(skip.scale))
                hooks.enter_context(block.conv1.register_forward_pre_hook(skip.undo))  # type: ignore[union-attr]
            return self.model(x)


class _Skip:
    """One pass through a block, whose input is scaled, and what enters the branch replaced by what it was."""

    def __init__(self, spread: float) -> None:
        self.spread = spread
        self.scaled: Tensor | None = None
        self.whole: Tensor | None = None

    def scale(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        self.whole = args[0]
        ones = args[0].new_empty(args[0].shape[:2] + (1,) * (args[0].dim() - 2))
        self.scaled = args[0] * ones.uniform_(1 - self.spread, 1 + self.spread)
        return (self.scaled, *args[1:])

    def undo(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        if args[0] is not self.scaled:
            raise bad("blocks", "a block that changes its input before conv1", "blocks whose conv1 takes the input")
        return (self.whole, *args[1:])

    def __repr__(self) -> str:
        return f"skip({self.spread})"
