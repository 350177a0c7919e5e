"""A searchable collection that is kept: an index, what its items are, and which encoder made it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from withstand.errors import BadInput, bad
from withstand.files import write_atomic, write_json
from withstand.index.approximate import HNSW
from withstand.index.codes import CodeIndex
from withstand.index.exact import Index
from withstand.protocols import Dataset

Kind = Literal["flat", "hnsw", "binary"]
FILE = "collection.json"


class Encodes(Protocol):
    """What makes vectors or codes of images, e.g. `withstand.models.Encoder`."""

    name: str
    binary: bool

    def __call__(self, x: Tensor) -> Tensor: ...

    def of(self, data: Dataset) -> tuple[Tensor, Tensor | None, Tensor]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Item:
    """Something that a query found. id: of the example in its data set; distance: cosine in [0, 2], or different bits;
    label: its class or classes by name, if it has any; file: where it came from, if from a file."""

    id: int
    distance: float
    label: str = ""
    file: str = ""


def build(encoder: Encodes, data: Dataset, kind: Kind | None = None) -> "Collection":
    """Encode a data set and make it searchable.

    >>> import withstand as ws
    >>> encoder = ws.models.Encoder(ws.load_model("zoo:digits_cnn", pretrained=False))
    >>> shelf = build(encoder, ws.load_data("digits", split="train"))
    >>> len(shelf.query(encoder, torch.rand(2, 1, 8, 8), k=1))
    2

    kind: "flat", exact among vectors; "hnsw", nearly so and faster among many; "binary", exact among codes. None: "flat"
    or "binary", whichever the encoder's outputs need.

    Raises: BadInput for a kind that does not suit them, and for what the index refuses; MissingExtra for hnsw without faiss.
    """
    if kind is not None and kind not in get_args(Kind):
        raise bad("kind", repr(kind), " or ".join(get_args(Kind)))
    suited = ("binary",) if encoder.binary else ("flat", "hnsw")
    if kind is not None and kind not in suited:
        makes = "codes" if encoder.binary else "vectors"
        raise bad("kind", repr(kind), f"{' or '.join(suited)}: {encoder.name} makes {makes}")
    found, labels, ids = encoder.of(data)
    index = _MADE[kind or suited[0]](found)
    photos = getattr(getattr(data, "source", None), "photos", None)
    files = () if photos is None else tuple(str(photos[i]) for i in ids.tolist())
    origin = {"encoder": encoder.name, "data": data.name, "examples": len(data), "data_fingerprint": data.fingerprint()}
    origin["shape"] = list(data.space.shape or ())
    return Collection(kind or suited[0], index, ids, labels, tuple(data.classes), files, encoder.fingerprint(), origin)


def load(folder: str | Path) -> "Collection":
    """What `Collection.save` wrote. Raises: BadInput for a folder without it, or files that do not belong together."""
    from safetensors.torch import load as tensors

    folder = Path(folder)
    mend = "withstand index build writes one."
    if not (folder / FILE).is_file():
        raise bad("index", f"{folder}, which has no {FILE}", "a folder that holds an index", mend)
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        held = tensors((folder / "items.safetensors").read_bytes())
        index: Any = _LOADED[said["kind"]](folder)
        found = Collection(
            said["kind"],
            index,
            held["ids"],
            held.get("labels"),
            tuple(said["classes"]),
            tuple(said["files"]),
            said["encoder_fingerprint"],
            said["origin"],
        )
    except BadInput:
        raise
    except Exception as error:  # safetensors has errors of its own
        raise bad(
            "index", f"{folder} ({type(error).__name__}: {error})", "a folder that holds an index", mend
        ) from None
    if index.fingerprint() != said["fingerprint"] or len(found.ids) != len(index):
        raise bad("index", f"{folder}, whose parts do not belong together", "a folder that holds an index", mend)
    return found


@dataclass(frozen=True)
class Collection:
    """Items that can be searched for; `build` makes one, `load` reads it back.

    kind: see `build`. ids int64 [M], labels (int64 [M], or zeros and ones [M, C], or None), classes by name, files: of the
    items. encoder: fingerprint of what made the vectors or codes. origin: names of the encoder and the data.
    """

    kind: Kind
    index: Any
    ids: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    files: tuple[str, ...]
    encoder: str
    origin: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<{len(self)} items of {self.origin['data']}, {self.kind}, by {self.origin['encoder']}>"

    def search(self, encoder: Encodes, x: Tensor, k: int = 10) -> tuple[Tensor, Tensor]:
        """Distances [N, k], rising, and positions int64 [N, k] of the nearest items to images [N, C, H, W].

        Raises: BadInput for an encoder of other weights than made the index, and k beyond the items.
        """
        if encoder.fingerprint() != self.encoder:
            raise bad(
                "encoder",
                f"{encoder.name} (fingerprint {encoder.fingerprint()})",
                f"what made the index: {self.origin['encoder']} (fingerprint {self.encoder})",
                "Vectors of other weights mean something else. Give that model, or build the index anew.",
            )
        if not 1 <= k <= len(self):
            raise bad("k", k, f"1 to {len(self)}, the items of the index")
        return self.index.search(encoder(x).cpu(), k)

    def query(self, encoder: Encodes, x: Tensor, k: int = 10) -> list[list[Item]]:
        """The nearest items to images [N, C, H, W], nearest first; see `search`."""
        distance, position = self.search(encoder, x, k)
        return [[self._item(p, d) for p, d in zip(*row)] for row in zip(position.tolist(), distance.tolist())]

    def save(self, folder: str | Path) -> Path:
        """Write the collection into a folder, which is made. Raises: BadInput where the folder holds something else."""
        from safetensors.torch import save

        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise bad("out", f"{folder}, a file", "a folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE).is_file():
            raise bad("out", f"{folder}, which holds something else", "a new folder, or that of an index")
        (folder / FILE).unlink(missing_ok=True)  # until all is there, there is no index
        self.index.save(folder)
        items = {"ids": self.ids} if self.labels is None else {"ids": self.ids, "labels": self.labels}
        write_atomic(folder / "items.safetensors", save(items))
        said = {"kind": self.kind, "items": len(self), "fingerprint": self.index.fingerprint()}
        said |= {
            "encoder_fingerprint": self.encoder,
            "origin": self.origin,
            "classes": self.classes,
            "files": self.files,
        }
        write_json(folder / FILE, said)
        return folder

    def _item(self, position: int, distance: float) -> Item:
        return Item(
            int(self.ids[position]), distance, self._label(position), self.files[position] if self.files else ""
        )

    def _label(self, position: int) -> str:
        if self.labels is None:
            return ""
        said = self.labels[position]
        numbers = [int(said)] if said.dim() == 0 else said.nonzero().flatten().tolist()
        return ", ".join(self.classes[n] if n < len(self.classes) else str(n) for n in numbers)


_MADE: dict[str, Callable[[Tensor], Any]] = {"flat": Index, "hnsw": HNSW, "binary": CodeIndex}
_LOADED: dict[str, Callable[[Path], Any]] = {"flat": Index.load, "hnsw": HNSW.load, "binary": CodeIndex.load}
