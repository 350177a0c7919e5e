"""The attacker's own embedding: what it is, and which way it says the list falls apart."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.engine import Problem
from withstand.attacks.fit import FittedAttack
from withstand.attacks.retrieval.relevance import Gain, gains
from withstand.errors import bad
from withstand.models.record import TrainingRecord
from withstand.models.retrieval import Item, as_embedding
from withstand.models.state import frozen
from withstand.models.target import TorchTarget, is_target
from withstand.threats import per_row

_BATCH = 64  # images of items embedded at once


def _substitute(value: Any) -> Any:
    """An embedding, or the text of one, which is loaded when it is needed first."""
    if value is None or isinstance(value, (str, nn.Module)) or is_target(value):
        return value
    if isinstance(value, FittedAttack):
        target = TorchTarget(value.module, value.name, value.space, task="embedding")
        target.record = TrainingRecord(value.history)
        return target
    raise bad("substitute", type(value).__name__, "a torch module, or a text such as artefact:stolen")


Substitute = Annotated[Any, PlainValidator(_substitute)]
"""The type of a field that holds an embedding of images, None, or the text of one."""


def stealing_cost(substitute: Any) -> int | None:
    """How many questions a substitute was stolen with; None where it was not, or nothing is known of its training."""
    record = getattr(_resolved(substitute), "record", None)
    return int(record.history[-1]["queries"]) if record and record.history and "queries" in record.history[-1] else None


class Prior:
    """The unit gradient, at any point, of how far a substitute finds it from the clean list.

    v = -normalise(grad_z sum_i w_i cos(f(z), f(R_i))), with the items' vectors held fixed and f in eval mode.
    """

    def __init__(self, module: nn.Module, towards: Tensor) -> None:
        """towards: sum_i w_i f(R_i) / |f(R_i)|, [N, D], for each row of a block."""
        self.module, self.towards = module, towards

    def __call__(self, z: Tensor, rows: Tensor) -> Tensor:
        """[A, ...] at points z of the rows int64 [A]; zero where the substitute's gradient is."""
        point = z.detach().to(self.towards.device).requires_grad_(True)
        with frozen(self.module), torch.enable_grad():
            similar = (embedded(self.module, point) * self.towards[rows.to(self.towards.device)]).sum()
            (gradient,) = torch.autograd.grad(similar, point)
        length = gradient.flatten(1).norm(dim=1)
        return (-gradient / per_row(length.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)).to(z)


def prior_of(module: nn.Module, engine: Any, lists: list[list[Item]], p: Problem, gain: Gain, images: Any) -> Prior:
    """The prior that leads away from the clean lists, one for each row of a block; the items are looked at once each."""
    items = list(dict.fromkeys(item for found in lists for item in found))
    at = {item: i for i, item in enumerate(items)}
    place = next(module.parameters(), p.x)
    with frozen(module), torch.no_grad():
        parts = [items[i : i + _BATCH] for i in range(0, len(items), _BATCH)]
        vectors = torch.cat([embedded(module, engine.view(part, p.x, images).to(place.device)) for part in parts])
    w = gains(len(lists[0]), gain).to(vectors)
    return Prior(module, torch.stack([w @ vectors[[at[item] for item in found]] for found in lists]))


def embedded(module: nn.Module, x: Tensor) -> Tensor:
    """Unit vectors [N, D] of images. Raises: BadInput for values that are NaN or infinite."""
    f = module(x)
    if not bool(torch.isfinite(f).all()):
        raise bad("substitute", "an output with NaN or infinite values", "finite vectors", "Look at its training.")
    return F.normalize(f, dim=1)


_LOADED: dict[str, Any] = {}


def loaded(substitute: Any) -> nn.Module:
    """The module of a substitute, images to vectors [N, D]; texts are loaded once."""
    return as_embedding(_resolved(substitute))


def _resolved(substitute: Any) -> Any:
    if not isinstance(substitute, str):
        return substitute
    if substitute not in _LOADED:
        from withstand.models import load_model

        _LOADED[substitute] = load_model(substitute)
    return _LOADED[substitute]
