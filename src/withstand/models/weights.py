"""Weights from files: safetensors and state dicts, never code unless it is asked for."""

import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from withstand.errors import BadInput, bad

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "params")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def read_weights(path: str | PathLike[str], allow_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict in a `.safetensors`, `.pt`, `.pth`, `.th`, `.bin` or `.ckpt` file, on the CPU.

    Checkpoints that hold it under a usual key ("state_dict", "model", ...) are unwrapped. allow_pickle: also read files
    with pickled objects, which can run any code; only for files from people you trust.
    Raises: BadInput for files that are missing, truncated, no weights, pickled objects, or hold NaN or Inf.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise bad("weights", f"{path}, which is not a file", "a .safetensors file or a state dict (.pt, .pth, .th)")
    held = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path, allow_pickle)
    state = _unwrapped(held, path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise bad(
                "weights", f"{path} with NaN or Inf in {name!r}", "finite numbers", "The training may have diverged."
            )
    return state


def load_weights(module: nn.Module, state: Mapping[str, Tensor], what: str = "weights") -> None:
    """Load a state dict; all of it must fit. The prefixes `module.`, `model.` and `_orig_mod.` are taken off as needed.

    Raises: BadInput that lists the missing, unexpected and wrong-shaped keys (the first five of each, and how many).
    """
    own = module.state_dict()
    state = _without_prefixes(state, own)
    # files older than torch 0.4.1 lack the counters of batch norm, which only matter in training without momentum
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} is {list(state[k].shape)}, the model's is {list(own[k].shape)}"
        for k in state
        if k in own and not is_lazy(own[k]) and state[k].shape != own[k].shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        mend = "Check that the file belongs to this architecture, and classes if only the last layer differs."
        raise BadInput(f"{what}: the keys do not fit {type(module).__name__}: {'; '.join(problems)}. {mend}")
    module.load_state_dict(state, strict=False)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"weights: {path} is damaged or no safetensors file: {error}. Copy or save it again.") from None


def _torch_file(path: Path, allow_pickle: bool) -> Any:
    with path.open("rb") as file:
        head = file.read(2)
    if head != b"PK" and head[:1] != b"\x80":  # neither a zip nor a pickle
        raise bad("weights", f"{path}, which is no weight file", "a .safetensors file or a state dict (.pt, .pth, .th)")
    if head == b"PK" and not zipfile.is_zipfile(path):
        raise BadInput(f"weights: {path} is truncated. Copy it again.")
    if head == b"PK" and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        mend = "Load it with torch.jit.load in a factory: file.py:factory."
        raise bad("weights", f"{path}, a TorchScript program", "a state dict", mend)
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:  # torch.load raises many kinds for damaged files
        if not allow_pickle and isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise BadInput(
                f"weights: {path} holds pickled objects, which can run code when they are loaded. Save the state dict "
                "alone (torch.save(model.state_dict(), ...) or safetensors), or, if you trust where the file comes "
                f"from, pass allow_pickle=True (--allow-pickle). What it asks for: {_asked(error)}"
            ) from None
        first = str(error).split("\n")[0][:200]
        raise BadInput(
            f"weights: {path} is damaged or truncated ({type(error).__name__}: {first}). Copy it again."
        ) from None


def _asked(error: Exception) -> str:
    """The name of the object that weights_only refused, from torch's message."""
    words = str(error).split("GLOBAL ", 1)[1].split()
    return words[0].rstrip(".,")


def _unwrapped(held: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(held, nn.Module):
        return dict(held.state_dict())
    if isinstance(held, Mapping):
        for key in _WRAPPERS:
            if key in held and isinstance(held[key], (Mapping, nn.Module)):
                return _unwrapped(held[key], path)
        if held and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in held.items()):
            return dict(held)
        keys = ", ".join(repr(k) for k in list(held)[:5]) or "nothing"
        got = f"{path} with {keys}"
    else:
        got = f"{path} with an object of type {type(held).__name__}"
    raise bad("weights", got, f"a mapping from names to tensors, alone or under {', '.join(map(repr, _WRAPPERS[:3]))}")


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with as many common prefixes taken off as make most of its keys fit."""
    best, current = dict(state), dict(state)
    while prefix := next((p for p in _PREFIXES if current and all(k.startswith(p) for k in current)), None):
        current = {k.removeprefix(prefix): v for k, v in current.items()}
        if len(current.keys() & own.keys()) > len(best.keys() & own.keys()):
            best = current
    return best
