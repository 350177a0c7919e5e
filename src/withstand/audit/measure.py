"""What the checks do to a target: predict, attack, count; and how they name what they did."""

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor

from withstand.attacks.engine import Attack, AttackResult
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.protocols import Batch, Context, Target
from withstand.registry import coerce, parse, replace
from withstand.threats import Threat

JACOBIAN = ("deepfool", "fab", "jsma")
"""Attacks that take a gradient for each class at every step."""


def _optional(value: Any) -> Any:
    value = coerce("attack")(value)
    if value is not None and not isinstance(value, Attack):
        raise bad(
            "attack", repr(value), "an attack or its text, e.g. 'pgd(steps=50)', or None for the check's own choice"
        )
    return value


OptionalAttack = Annotated[Any, PlainValidator(_optional)]
"""The type of a check's field that holds an attack, or None for the one that the check names itself."""


def bounded(check: Any) -> None:
    """Refuse a check whose threat has no single radius, or whose attack cannot search that threat."""
    if not isinstance(check.threat.eps, float):
        raise bad("threat", repr(check.threat), "a threat with one radius for all examples, e.g. linf(8/255)")
    if check.attack is not None:
        replace(check.attack, threat=check.threat)


def attack_on(threat: Threat, attack: Any, default: str) -> Attack:
    """The attack of a check: the one given, else the default by its text, always on the check's threat."""
    return replace(attack if attack is not None else parse(default, "attack"), threat=threat)


def condition_of(attack: Attack, threat: Threat) -> dict[str, Any]:
    """How rows and metrics say what was done: {"attack": "apgd", "threat": "linf", "eps": 0.031}."""
    said: dict[str, Any] = {"attack": attack.component_name, "threat": threat.component_name}  # type: ignore[attr-defined]
    return said if threat.eps is None else {**said, "eps": threat.eps}


def radius_text(eps: float) -> str:
    """A radius as it is usually written: 8/255, or 0.3."""
    steps = eps * 255
    quarters = abs(steps * 4 - round(steps * 4)) < 1e-6 and abs(eps - round(eps, 3)) > 1e-9
    return f"{round(steps * 4) / 4:g}/255" if quarters else f"{eps:g}"


def threat_text(threat: str, eps: float | None = None) -> str:
    """A threat in words: Linf 8/255."""
    return threat.capitalize() + (f" {radius_text(eps)}" if eps is not None else "")


def labelled(shard: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and ids of a shard that has them all."""
    if shard.y is None or shard.ids is None:
        raise bad("data", "examples without labels or ids", "labelled examples")
    return shard.x, shard.y, shard.ids


def predict(target: Target, x: Tensor, ctx: Context) -> Tensor:
    """Logits [N, K] of a batch, in blocks, in eval mode without gradients; counts its passes.

    A target that only decides gives one-hot rows.
    """
    parts = x.split(ctx.block or 256)
    with torch.no_grad():
        if target.module is None:
            found = [target(part) for part in parts]
        else:
            with frozen(target.module):
                found = [target(part) for part in parts]
    ctx.spend(forwards=len(x))
    logits = torch.cat(found)
    if logits.dim() == 1 and not logits.is_floating_point():
        return F.one_hot(logits, max(target.space.classes or 0, int(logits.max()) + 1)).to(x.dtype)
    return logits


def confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(the largest probability, its class), each [N]; in float64."""
    p, label = logits.double().softmax(1).max(1)
    return p, label


def run_attack(
    attack: Attack, model: Any, x: Tensor, y: Tensor | None, ids: Tensor, ctx: Context, **context: Any
) -> AttackResult:
    """The attack with the run's seed and block, its passes counted."""
    result = attack.run(model, x, y, seed=ctx.seed, ids=ids, block=ctx.block, progress=ctx.progress, **context)
    ctx.spend(int(result.forwards.sum()), int(result.backwards.sum()))
    return result


def attack_passes(attack: Any, target: Target) -> float:
    """At most how many forward-and-gradient passes an attack makes on one example.

    A pass without a gradient counts half where the target has gradients. The attack's budgets are multiplied: steps x
    restarts x searches x targets x samples, with a gradient for each class where the attack takes the whole Jacobian; plus
    queries.
    """
    name, classes = getattr(attack, "component_name", ""), target.space.classes or 1000
    if name == "autoattack":  # every part on everything, one look at what each found, six for its own checks
        return 8.0 + sum(1 + attack_passes(part, target) for part in attack.attacks(classes).values())
    size = math.prod(s or 1 for s in target.space.shape or (3, 224, 224))
    runs = getattr(attack, "restarts", 1) * getattr(attack, "searches", 1)
    if isinstance(targets := getattr(attack, "targets", None), int):
        runs *= max(1, min(targets, classes - 1))
    if views := getattr(attack, "views", ()):  # and one look at the point itself
        runs *= 1 + math.prod(getattr(view, "looks", getattr(view, "samples", 1)) for view in views)
    runs *= getattr(attack, "looks", 1)
    gradients = min(classes, getattr(attack, "candidates", classes)) if name in JACOBIAN else 1
    guided = getattr(attack, "guide", None) is not None
    forwards = 2 if name in ("fab", "fab_t") or guided else 1  # each step looks where it came to, or asks a guide
    steps = getattr(attack, "steps", 1) + 10 * getattr(attack, "guided_start", False)
    if name == "jsma":
        steps = math.ceil(attack.gamma * size / 2) + 1
    looks = getattr(attack, "queries", 0) + getattr(attack, "samples", 0)
    each = 0.5 if "gradients" in target.access else 1.0
    return 2.0 + runs * (steps + 3) * (forwards + gradients) / 2 + each * looks
