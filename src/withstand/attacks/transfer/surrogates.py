"""Views of the model itself: several surrogates as one, and skip connections that carry more of the gradient."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.target import TorchTarget, as_target
from withstand.protocols import Space


def ensemble(models: Sequence[Any]) -> TorchTarget:
    """One surrogate whose logits are the mean of the models' logits.

    models: modules or targets with gradients, one or more, of the same classes and input shape.

    Reference: Liu et al., "Delving into Transferable Adversarial Examples and Black-box Attacks", 2017, arXiv 1611.02770
    (there probabilities are averaged); in logits: Dong et al., 2018, arXiv 1710.06081.

    Raises:
        BadInput: for no models, models without gradients, or models that do not fit together.
    """
    if not models:
        raise bad("models", "none", "one surrogate or more")
    targets = [as_target(model) for model in models]
    modules = [_module(target) for target in targets]
    for what in ("classes", "shape", "box"):
        found = {t.name: v for t in targets if (v := getattr(t.space, what)) is not None}
        if len(set(found.values())) > 1:
            raise bad("models", found, f"surrogates with the same {what}")
    known = [t.space for t in targets]
    space = Space(
        next((s.shape for s in known if s.shape), None),
        known[0].box,
        next((s.classes for s in known if s.classes), None),
    )
    return TorchTarget(_Mean(modules), "+".join(t.name for t in targets), space)


class _Mean(nn.Module):
    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.training = any(model.training for model in models)

    def forward(self, x: Tensor) -> Tensor:
        total, *others = [model(x) for model in self.models]
        for logits in others:
            if logits.shape != total.shape:
                raise bad(
                    "models", f"{logits.shape[1]} and {total.shape[1]} classes", "surrogates with the same classes"
                )
            total = total + logits
        return total / len(self.models)


def skip_gradient(model: Any, gamma: float = 0.2, branches: str | None = None) -> TorchTarget:
    """The model with its gradient through residual branches scaled by gamma (SGM); the forward pass is untouched.

    For a block z + f(z) the gradient of z becomes 1 + gamma * df/dz, so that over l blocks a branch's share decays as
    gamma^l. gamma in (0, 1]: 0.2 for ResNets, 0.5 for DenseNets in the paper; 1 is the plain model. branches: a regular
    expression for the full names of the modules that branches end in; None takes the last convolution or norm of each
    module that has a `conv1` and a `conv2`. The modules stay shared with `model`, which is not changed.

    Reference: Wu et al., "Skip Connections Matter: On the Transferability of Adversarial Examples Generated with ResNets",
    2020, arXiv 2002.05990.

    Raises:
        BadInput: for gamma outside (0, 1] or a model in which no branch is found.
    """
    if not 0 < gamma <= 1:
        raise bad("gamma", gamma, "a share in (0, 1]")
    target = as_target(model)
    module = _module(target)
    if branches is None:
        ends = [end for part in module.modules() if (end := _end(part)) is not None]
    else:
        ends = [part for name, part in module.named_modules() if name and re.search(f"(?:^|\\.){branches}$", name)]
    if not ends:
        names = [name for name, _ in module.named_modules() if name][:8]
        raise bad(
            "branches",
            repr(branches),
            f"a pattern of module names where branches end, among {', '.join(names)}, ...",
            "For example r'layer\\d\\.\\d+\\.bn2'.",
        )
    return TorchTarget(_Decayed(module, ends, gamma), f"{target.name}/sgm", target.space)


class _Decayed(nn.Module):
    def __init__(self, model: nn.Module, ends: Sequence[nn.Module], gamma: float) -> None:
        super().__init__()
        self.model, self.ends, self.gamma = model, tuple(ends), gamma
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        hooks = [end.register_forward_hook(self._decay) for end in self.ends]
        try:
            return self.model(x)
        finally:
            for hook in hooks:
                hook.remove()

    def _decay(self, _: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * self.gamma)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, branches={len(self.ends)}"


def _end(part: nn.Module) -> nn.Module | None:
    children = dict(part.named_children())
    if not {"conv1", "conv2"} <= children.keys():
        return None
    return [child for name, child in children.items() if re.fullmatch(r"(conv|bn|norm)\d", name)][-1]


def _module(target: Any) -> nn.Module:
    module = getattr(target, "module", None)
    if not isinstance(module, nn.Module):
        raise bad("model", target.name, "a torch model, whose gradients are at hand")
    return module
