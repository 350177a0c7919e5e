"""Checkpoints: everything that a training needs to go on, as safetensors and JSON, one folder each.

A folder is written under a temporary name, flushed and renamed, so it is whole or not there. The two newest are kept: where
one is found damaged (its checksum does not fit), the one before it is taken.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import BadInput, Unavailable
from withstand.files import write_atomic

KEPT = 2


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts, lists and plain values as JSON, with the tensors apart, each under a number.

    Keys of dicts that are not strings (optimiser states are numbered) are kept as pairs.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = str(len(tensors))
            tensors[key] = value.detach().cpu().contiguous().clone()
            return {"tensor": key}
        if isinstance(value, dict):
            return {"dict": [[k, plain(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(v) for v in value]}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return value

    return plain(tree), tensors


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` was given."""
    match packed:
        case {"tensor": key}:
            return tensors[key]
        case {"dict": items}:
            return {k: unpack(v, tensors) for k, v in items}
        case {"tuple": items}:
            return tuple(unpack(v, tensors) for v in items)
        case list():
            return [unpack(v, tensors) for v in packed]
    return packed


def save(folder: Path, step: int, state: Any) -> Path:
    """Write `<folder>/step-<step>` and drop all but the newest two. Raises: Unavailable for a full disk."""
    from safetensors.torch import save as to_bytes

    packed, tensors = pack(state)
    data = to_bytes(tensors)
    target = folder / f"step-{step:09d}"
    temporary = folder / f".step-{step:09d}.{os.getpid()}"
    try:
        write_atomic(temporary / "state.safetensors", data)
        write_atomic(
            temporary / "state.json", json.dumps({"sha256": hashlib.sha256(data).hexdigest(), "state": packed})
        )
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except (OSError, Unavailable):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load(folder: Path, warn: Callable[[str], None]) -> Any:
    """The state of the newest checkpoint that is whole, or None where there is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    for found in sorted(folder.glob("step-*"), reverse=True):
        try:
            data = (found / "state.safetensors").read_bytes()
            held = json.loads((found / "state.json").read_text())
            if hashlib.sha256(data).hexdigest() != held["sha256"]:
                raise BadInput("its checksum does not fit")
            return unpack(held["state"], from_bytes(data))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warn(f"the checkpoint {found} is damaged ({error}); going on from the one before it")
    return None


def save_weights(path: Path, model: nn.Module) -> Path:
    """The model's state dict as safetensors, atomically; tensors that share memory are written out each."""
    from safetensors.torch import save as to_bytes

    return write_atomic(
        path, to_bytes({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()})
    )


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two configurations differ, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            d for k in keys for d in differences(old.get(k, "nothing"), new.get(k, "nothing"), f"{at}.{k}".strip("."))
        ]
    return [] if old == new else [f"{at}: was {old}, is {new}"]


def to_device(state: Any, device: torch.device) -> Any:
    """The tensors of a nested state on a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {k: to_device(v, device) for k, v in state.items()}
    if isinstance(state, list):
        return [to_device(v, device) for v in state]
    return state
