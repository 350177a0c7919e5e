"""Attacks by a generator that was fitted before: one pass of it for each image, no gradient, no label."""

import copy
from dataclasses import field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.engine import Attack, AttackResult, Problem
from withstand.attacks.fit import load_fitted
from withstand.attacks.pgd import needs_fixed_set
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.objectives import Margin, Target, TargetedMargin
from withstand.registry import component
from withstand.threats import Linf, ThreatField


def _generator(value: Any) -> Any:
    """A module, or what stands for one; texts are loaded when they are needed first."""
    return value if value is None or isinstance(value, str) else load_fitted(value, "generator")


GeneratorField = Annotated[Any, PlainValidator(_generator)]
"""The type of a field that holds a generator: "artefact:FOLDER", what `fit_attack` returned, or a module."""


@component("attack", "generated", systems=("bia",))
class Generated(Attack):
    """What a generator makes of an image, projected into the threat's set: one forward pass, no label, no gradient.

    z = P(G(x)), clipped to the range of images. The model is not asked at all, so that any may be given; with keep="best" it
    judges the points, which costs two passes.

    generator: "artefact:FOLDER" of `withstand fit-attack` (recipes `bia` and `cda`), what `fit_attack` returned, or a module
    that maps images to images; it works in eval mode, on images of its number of channels and of any size.

    >>> Generated(Linf(10 / 255), "artefact:runs/bia")(model, x)

    Reference: Zhang et al., "Beyond ImageNet Attack: Towards Crafting Adversarial Examples for Black-box Domains", 2022,
    arXiv 2201.11528.
    """

    threat: ThreatField = Linf(10 / 255)
    generator: GeneratorField = None
    keep: Literal["best", "last"] = field(default="last", kw_only=True)
    active: bool = field(default=False, kw_only=True)

    access: ClassVar[Any] = "decision"
    blind = True
    objective = Margin()

    def __post_init__(self) -> None:
        needs_fixed_set(self)

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> AttackResult:
        """See `Attack.run`."""
        if y is None and self.keep == "last" and isinstance(x, Tensor):
            y = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # never read: saves the pass that finds labels
        return super().run(model, x, y, **context)

    def refuse(self, model: Any, x: Tensor) -> None:
        self.generate(x)

    def search(self, p: Problem) -> Tensor | None:
        if self.keep == "best":
            p.clean  # noqa: B018 (the clean point counts as a candidate)
            p.drop_done()
            if p.finished:
                return None
        z = p.project(self.generate(p.x_alive, self.aims(p)))
        if self.keep == "best":
            p.look(z)
        return z

    def aims(self, p: Problem) -> Tensor | None:
        """The class [A] that each alive example is to be taken for."""
        return None

    def generate(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """What the generator returns for images x, not projected, in the dtype of x.

        Raises: BadInput where there is no generator, where images or targets do not fit it, or where it returns something
        else than a finite image for each.
        """
        if self.generator is None:
            mend = "Fit one: withstand fit-attack 'bia(layer=...)' MODEL --data DATA --out DIR"
            raise bad("generator", "none", '"artefact:FOLDER", a module, or what fit_attack returned', mend)
        net: nn.Module = load_fitted(self.generator, "generator")
        return images_of(net, x) if target is None else images_of(net, x, target)


def images_of(net: nn.Module, x: Tensor, *aims: Tensor) -> Tensor:
    """net(x, *aims) in eval mode, in the dtype and on the device of the images x.

    Raises: BadInput where that is something else than a finite image for each.
    """
    held = next(net.parameters(), x)
    if held.dtype != x.dtype or held.device != x.device:
        net = copy.deepcopy(net).to(x)
    with torch.no_grad(), frozen(net):
        made = net(x, *aims)
    if not isinstance(made, Tensor) or made.shape != x.shape:
        got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise bad("generator", f"one that returns {got}", f"one that returns images {list(x.shape)}, as it is given")
    if not bool(torch.isfinite(made).all()):
        raise bad("generator", "NaN or infinite values", "finite images", "Its training may have diverged.")
    return made


@component("attack", "targeted_generated", systems=("aigan",))
class TargetedGenerated(Generated):
    """What a conditional generator makes of an image and a class that it is to be taken for: one forward pass.

    z = P(G(x, t)), clipped to the range of images. target: t, one class for all or long [N], one for each; None takes the
    runner-up of the clean logits, which costs a pass of the model (any wrong class is then a success). An image whose label
    is the target is never a success: there is nothing to reach.

    generator: as for `generated`, of the recipe `aigan`, or a module called as generator(x, t). Beyond the eps that it was
    fitted for, a larger threat adds nothing.

    Reference: Bai et al., "AI-GAN: Attack-Inspired Generation of Adversarial Examples", 2021, arXiv 2002.02196.
    """

    threat: ThreatField = Linf(0.3)
    target: Target = None

    @property
    def access(self) -> str:  # type: ignore[override]
        """Scores where they choose the target."""
        return "scores" if self.target is None else "decision"

    @property
    def objective(self) -> TargetedMargin:  # type: ignore[override]
        """Towards the target."""
        return TargetedMargin(self.target)

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> AttackResult:
        """See `Attack.run`."""
        if self.target is None:
            return Attack.run(self, model, x, y, **context)
        if isinstance(self.target, Tensor) and isinstance(x, Tensor) and len(self.target) != len(x):
            raise bad("target", f"{len(self.target)} classes", f"one for each of the {len(x)} images")
        found = super().run(model, x, y, **context)
        if y is None or self.keep == "last":
            return found
        success = found.success & (torch.as_tensor(self.target, device=y.device) != y)
        return replace(found, success=success, cost_at_success=torch.where(success, found.cost_at_success, -1))

    def refuse(self, model: Any, x: Tensor) -> None:
        aim = 0 if self.target is None else torch.as_tensor(self.target).flatten()[:1].item()
        self.generate(x, torch.full((1,), int(aim), device=x.device))
        known = getattr(load_fitted(self.generator, "generator"), "classes", None)
        classes = getattr(getattr(model, "space", None), "classes", None)
        if known and classes and known != classes:
            raise bad("generator", f"one for {known} classes", f"one for the model's {classes}", "Fit one on it.")

    def aims(self, p: Problem) -> Tensor:
        chosen = p.objective.target
        if chosen is None:
            return p.state["target"]
        every = torch.as_tensor(chosen, device=p.x.device).expand(len(p.x)).long()
        return every[p.alive]
