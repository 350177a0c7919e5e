"""The database that an attacker on a hashing model knows: codes and labels."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.hashing.centres import as_codes, as_labels, check_pair, sign
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.models.target import as_target
from withstand.protocols import Dataset
from withstand.registry import live

_BLOCK = 256


@dataclass(frozen=True)
class Database:
    """Items that are searched. codes: [M, K] of -1 and 1; labels: 0/1 floats [M, C]."""

    codes: Tensor
    labels: Tensor

    @classmethod
    def of(cls, codes: Any, labels: Any) -> "Database":
        """Of arrays or tensors; labels may be class indices [M]. Raises: BadInput as `centre_codes`."""
        made = cls(as_codes(codes, "database codes"), as_labels(labels, "database labels"))
        check_pair(made.codes, made.labels)
        return made

    @classmethod
    def hashed(cls, model: Any, data: Dataset, device: torch.device | str | None = None) -> "Database":
        """All examples of a data set, hashed by a model in eval mode. Raises: BadInput for data without labels."""
        u, labels, _ = outputs(model, data, device)
        return cls(sign(u), labels)

    def to(self, like: Tensor) -> "Database":
        """On the device of a tensor, in its dtype."""
        return Database(self.codes.to(like), self.labels.to(like))

    def fingerprint(self) -> str:
        """Changes with codes and labels."""
        return live(self.codes) + live(self.labels)


def outputs(model: Any, data: Dataset, device: torch.device | str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Real outputs [N, K] of a hashing model in eval mode for all examples, their labels 0/1 [N, C], their ids int64 [N].

    Raises: BadInput for data without labels.
    """
    target = as_target(model)
    module = target.module
    if device is None:
        device = next(module.parameters()).device if module is not None else "cpu"
    found, labels, ids = [], [], []
    with frozen(module if module is not None else nn.Identity()), torch.no_grad():
        for begin in range(0, len(data), _BLOCK):
            batch = data.batch(range(begin, min(begin + _BLOCK, len(data))))
            if batch.y is None:
                raise bad("data", f"{data.name}, without labels", "labelled examples")
            found.append(target(batch.x.to(device)).float())
            labels.append(as_labels(batch.y, "labels", len(data.classes)).to(device))
            ids.append(torch.arange(begin, begin + len(batch)) if batch.ids is None else batch.ids)
    return torch.cat(found), torch.cat(labels), torch.cat(ids).to(device)


def _field(value: Any) -> Any:
    """None, a text, a data set, a `Database`, or a pair (codes, labels)."""
    if value is None or isinstance(value, (str, Database)) or hasattr(value, "batch"):
        return value
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return Database.of(*value)
    raise bad("database", type(value).__name__, "(codes, labels), a data set, or the name of one")


DatabaseField = Annotated[Any, PlainValidator(_field)]
"""The type of a field that holds a database; a data set, or the name of one, is hashed by the attacked model."""

_hashed: dict[str, Database] = {}


def resolve(given: Any, model: Any, example: str) -> Database:
    """The database that a field stands for; data sets are hashed by the model, once for the same weights.

    Raises: BadInput where there is none, codes of another length than the model's aside.
    """
    if isinstance(given, Database):
        return given
    if given is None:
        mend = f"E.g. {example}(database=(codes, labels)), or database= a data set, which the model hashes."
        raise bad("database", "none", "the codes and labels that the attacker knows", mend)
    if isinstance(given, str):
        from withstand.data import load_data

        given = load_data(given, split="train")
    key = f"{given.fingerprint()} {as_target(model).fingerprint()}"
    if key not in _hashed:
        _hashed.clear()
        _hashed[key] = Database.hashed(model, given)
    return _hashed[key]
