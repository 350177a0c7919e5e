"""Exported graphs, run by onnxruntime."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from withstand.errors import BadInput, bad, missing_extra
from withstand.models.blackbox import BlackBox, Kind
from withstand.models.normalise import Pair
from withstand.protocols import Space

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxTarget(BlackBox):
    """An ONNX graph: scores and decisions, no gradients. Shape and batch size come from the graph."""

    def __init__(
        self,
        path: str,
        classes: int | None = None,
        normalise: Pair | None = None,
        *,
        name: str | None = None,
        outputs: Kind = "logits",
        output: str | None = None,
        layout: str | None = None,
    ) -> None:
        """outputs: "logits" or "probabilities". output: name of the graph's output, where it has several.
        layout: "nchw" or "nhwc" where the graph leaves it open. Raises: BadInput, MissingExtra."""
        try:
            import onnxruntime
        except ImportError:
            raise missing_extra("onnxruntime", "onnx", path) from None
        if outputs not in ("logits", "probabilities"):
            raise bad("outputs", repr(outputs), '"logits" or "probabilities" for an ONNX graph')
        file = Path(path).expanduser()
        if not file.is_file():
            raise bad("model", f"{file}, which is not a file", "an existing .onnx file")
        try:
            self._session: Any = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime has an exception class for every status code
            first = str(error).split("\n")[0]
            raise BadInput(f"{file}: damaged, or no ONNX graph that onnxruntime can run: {first}") from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) < 2:
            got = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise bad(
                f"{file}: inputs", got, "one float tensor [N, C, H, W]", "Export it with images as its only input."
            )
        self._input, self._dtype = inputs[0].name, _TYPES[inputs[0].type]
        fixed = [d if isinstance(d, int) and d > 0 else None for d in inputs[0].shape]
        self._nhwc = _channels_last(fixed[1:], layout, str(file))
        shape = (fixed[-1], *fixed[1:-1]) if self._nhwc else tuple(fixed[1:])
        self._output = self._chosen(output, classes, str(file))
        columns = self._output.shape[-1] if isinstance(self._output.shape[-1], int) else None
        if None not in (classes, columns) and classes != columns:
            raise bad("classes", classes, f"{columns}, as the graph's output {self._output.name!r} has")
        super().__init__(name or file.stem, Space(shape, (0.0, 1.0), columns or classes), normalise, fixed[0])
        self._kind: Kind = outputs
        self._file = file

    @property
    def kind(self) -> Kind:
        return self._kind

    def ask(self, x: np.ndarray) -> np.ndarray:
        n = len(x)
        if self._batch and n < self._batch:  # a graph with a fixed batch size takes nothing less
            x = np.concatenate([x, np.repeat(x[-1:], self._batch - n, 0)])
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1) if self._nhwc else x, self._dtype)
        try:
            answer = self._session.run([self._output.name], {self._input: x})[0][:n]
        except Exception as error:
            raise BadInput(f"{self._file}: the graph refuses inputs of shape {list(x.shape)}: {error}") from None
        if not isinstance(answer, np.ndarray) or answer.ndim != 2 or answer.dtype.kind != "f":
            got = f"{answer.dtype} {list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
            raise bad(f"{self._file}: output {self._output.name!r}", got, "floats [N, K]", "Name another: output=NAME.")
        return answer

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._file.read_bytes())
        digest.update(repr((self._normalise, self._kind, self._output.name)).encode())
        return digest.hexdigest()[:32]

    def _chosen(self, output: str | None, classes: int | None, what: str) -> Any:
        every = self._session.get_outputs()
        found = [o for o in every if output in (None, o.name)]
        if output is None and len(found) > 1:
            found = [o for o in found if o.type in _TYPES and len(o.shape) == 2]
            if len(found) > 1 and classes is not None:
                found = [o for o in found if o.shape[1] == classes]
        if len(found) != 1:
            names = ", ".join(f"{o.name} {o.type} {o.shape}" for o in every)
            raise bad(
                f"{what}: output", repr(output or "no choice"), f"the name of one of: {names}", "Pass output=NAME."
            )
        return found[0]


def _channels_last(shape: list[int | None], layout: str | None, what: str) -> bool:
    if layout not in (None, "nchw", "nhwc"):
        raise bad("layout", repr(layout), '"nchw" or "nhwc"')
    if layout is None and len(shape) == 3 and shape[0] in (1, 3) and shape[2] in (1, 3):
        raise bad(f"{what}: layout", f"the shape {shape}", '"nchw" or "nhwc"', "Pass layout=...")
    return layout == "nhwc" or (layout is None and len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3))
