"""What models without a torch module share: batches of bounded size, counted queries, outputs made logits."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad
from withstand.models.normalise import Pair
from withstand.protocols import Space

Kind = Literal["logits", "probabilities", "labels"]


class BlackBox(ABC):
    """A target that answers and shows nothing else. listeners: called with the number of examples of every query.

    Probabilities p stand as logits log p; labels as logits 1 at the label and 0 elsewhere (access "decision" only).
    """

    task = "classification"
    module = None

    def __init__(
        self, name: str, space: Space, normalise: Pair | None, batch: int | None, notes: tuple[str, ...] = ()
    ) -> None:
        if batch is not None and (not isinstance(batch, int) or batch < 1):
            raise bad("batch", repr(batch), "a whole number >= 1")
        self.name, self.space, self.notes = name, space, notes
        self.listeners: list[Callable[[int], None]] = []
        self._normalise, self._batch = normalise, batch

    @property
    def access(self) -> frozenset[str]:
        """Scores and decision, or the decision alone."""
        return frozenset({"decision"} if self.kind in ("labels", None) else {"scores", "decision"})

    @property
    @abstractmethod
    def kind(self) -> Kind | None:
        """What the model returns; None = not known before its first answer."""

    @abstractmethod
    def ask(self, x: np.ndarray) -> np.ndarray:
        """What the model returns for float32 [n, C, H, W], n <= batch: [n, K], or labels [n]."""

    @abstractmethod
    def fingerprint(self) -> str: ...

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [N, K] on the device of x, without gradients."""
        sent = x.detach().to("cpu", torch.float32)
        if self._normalise is not None:
            mean, std = (torch.tensor(v).view(1, -1, *[1] * (x.ndim - 2)) for v in self._normalise)
            sent = (sent - mean) / std
        answers = [self.ask(part.numpy()) for part in sent.split(self._batch or max(1, len(sent)))]
        for listener in self.listeners:
            listener(len(x))
        return self._logits(np.concatenate(answers)).to(x.device)

    def _logits(self, answer: np.ndarray) -> Tensor:
        if self.kind == "labels":
            return torch.nn.functional.one_hot(torch.from_numpy(answer).long(), self.space.classes or -1).float()
        out = torch.from_numpy(answer.astype(np.float32))
        return out if self.kind == "logits" else out.clamp_min(torch.finfo(out.dtype).tiny).log()

    def __repr__(self) -> str:
        return f"<{self.name}: {self.task}, input {self.space.shape}, {self.space.classes} classes>"
