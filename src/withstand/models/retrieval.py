"""Retrieval engines as targets: an image in, the ids of the most similar items out, and nothing else."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from withstand.errors import Unavailable, WithstandError, bad
from withstand.index import Index
from withstand.models.http import Caller
from withstand.models.query_log import QueryLog, key_of
from withstand.models.state import frozen
from withstand.models.target import as_target
from withstand.protocols import Space

Item = int | str
"""How an engine names what it returns."""

_WEB = ("http://", "https://")


class RetrievalTarget:
    """A search engine that is asked with images and answers with ranked ids: no scores, no labels, no gradients.

    >>> engine = RetrievalTarget(lambda x: [[3, 1, 2]] * len(x), k=3)
    >>> engine(torch.zeros(2, 1, 8, 8))
    [[3, 1, 2], [3, 1, 2]]

    access is {"top_k"}. listeners: called with the number of images of every question. sent: images that the engine was
    really asked, without those that the log answered.
    """

    task = "retrieval"
    access = frozenset({"top_k"})
    module = None

    def __init__(
        self,
        fn: Callable[[Tensor], Any] | None,
        k: int | None = None,
        image_of_id: Callable[[Any], Tensor] | Mapping[Any, Tensor] | str | None = None,
        *,
        name: str | None = None,
        shape: tuple[int, ...] | None = None,
        batch: int | None = None,
        log: str | PathLike[str] | None = None,
    ) -> None:
        """fn: float32 images [N, C, H, W] in [0, 1] -> N lists of ids, best first. k: length of a list; longer ones are
        cut, shorter ones refused; None: that of the first answer. image_of_id: what an item looks like, as float [C, H, W]
        in [0, 1]; a text with {id} in it is an address or the path of a file. shape: (C, H, W), if known. batch: images in
        one question. log: an append-only file of questions and answers, which answers what it holds; it belongs to
        the `name`, which must then be given.

        Raises: BadInput; Unavailable for a log that another process holds.
        """
        for what, value in (("k", k), ("batch", batch)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise bad(what, repr(value), "a whole number >= 1, or None")
        if isinstance(image_of_id, str) and "{id}" not in image_of_id:
            raise bad("image_of_id", repr(image_of_id), "an address or a path with {id} in it", "E.g. gallery/{id}.png")
        if log is not None and name is None:
            raise bad("name", "none", "a name for the engine whose answers the log keeps", "E.g. name='shop 2026-11'.")
        self.fn, self.k, self.image_of_id = fn, k, image_of_id
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.space = Space(tuple(shape) if shape else None, (0.0, 1.0))
        self.notes: tuple[str, ...] = ()
        self.listeners: list[Callable[[int], None]] = []
        self.sent = 0
        self._declared, self._batch = k, batch
        self._log = None if log is None else QueryLog(log, self._answering())

    def __call__(self, x: Tensor) -> list[list[Item]]:
        """The ids of the k most similar items to each image, best first.

        Raises: BadInput for images out of range. Unavailable where the engine fails or answers with what is no ranking
        (an empty list, one item twice, fewer than k); what it answered before is in the log.
        """
        sent = self._images(x)
        if self.space.shape not in (None, tuple(x.shape[1:])):
            raise bad(
                "x", f"images {list(x.shape[1:])}", f"images {list(self.space.shape or ())}, as {self.name} takes"
            )
        found: list[list[Item]] = []
        try:
            for part in sent.split(self._batch or max(1, len(sent))):
                found += self._asked(part)
        finally:
            for listener in self.listeners:
                listener(len(found))
        return found

    def view(self, ids: Sequence[Item], like: Tensor, show: Any = None) -> Tensor:
        """What the items look like, float [n, C, H, W] on the device of `like` [..., C, H, W], which says their shape.

        show: an `image_of_id` instead of the engine's own. Raises: BadInput where items cannot be seen, for ids that nobody
        knows, and for images of another shape or range.
        """
        show = self.image_of_id if show is None else show
        if show is None:
            mend = "Give image_of_id=... with the engine, or images='http://host/items/{id}.png'."
            raise bad("image_of_id", "nothing", f"what the items of {self.name} look like", mend)
        shape = tuple(like.shape[-3:])
        images = [_seen(show, item, shape) for item in ids]
        return torch.stack(images).to(like) if images else like.new_zeros(0, *shape)

    def fingerprint(self) -> str:
        """Of the name and the declarations; what stands behind them may change without notice."""
        return hashlib.sha256(repr((self.name, self._declared)).encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        return f"<{self.name}: {self.task}, input {self.space.shape}, top {self.k or 'k'}>"

    def ask(self, x: Tensor) -> Any:
        """What the engine says to images [n, C, H, W], not yet looked at."""
        assert self.fn is not None
        try:
            return self.fn(x)
        except WithstandError:
            raise
        except Exception as error:
            raise Unavailable(f"{self.name} failed: {type(error).__name__}: {error}.{self._resume}") from error

    def _answering(self) -> str:
        """Whose answers a log keeps: no other engine may be answered from it."""
        return f"{self.name} k={self._declared}"

    def _asked(self, x: Tensor) -> list[list[Item]]:
        if self._log is None:
            return self._sent(x)
        keys = [key_of(image) for image in x.numpy()]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._log}
        if new:
            rows = sorted(new.values())
            self._log.add([keys[i] for i in rows], "ids", self._sent(x[rows]))
        return self._checked([self._log[key][1] for key in keys], len(x))

    def _sent(self, x: Tensor) -> list[list[Item]]:
        answer = self._checked(self.ask(x), len(x))
        self.sent += len(x)
        return answer

    def _images(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise bad("x", got, "float images [N, C, H, W] in [0, 1]")
        if len(x) and not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise bad("x", f"values in [{float(x.min()):.4g}, {float(x.max()):.4g}]", "values in [0, 1]")
        return x.detach().to("cpu", torch.float32)

    def _checked(self, answer: Any, n: int) -> list[list[Item]]:
        """The answer as lists of ids; settles k at the first one."""
        lists = _plain(answer)
        if not isinstance(lists, list) or len(lists) != n:
            got = f"{len(lists)} lists" if isinstance(lists, list) else f"a {type(answer).__name__}"
            raise self._garbage(f"{got} for {n} images")
        found = []
        for i, items in enumerate(map(_plain, lists)):
            if not isinstance(items, list) or not items:
                raise self._garbage(
                    f"{items!r} for image {i} of {n}" if items != [] else f"an empty list for image {i}"
                )
            items = [_plain(item) for item in items]
            if strange := [item for item in items if not isinstance(item, (int, str)) or isinstance(item, bool)]:
                raise self._garbage(f"the id {strange[0]!r}")
            k = self.k or len(items)
            if len(items) < k:
                raise self._garbage(f"{len(items)} ids for image {i}", f"{k}; pass k={len(items)} if it has no more")
            items = items[:k]
            if len(set(items)) < k:
                twice = next(item for item in items if items.count(item) > 1)
                raise self._garbage(f"the id {twice!r} twice in one list", "each id once")
            self.k = k
            found.append(items)
        return found

    def _garbage(self, got: str, allowed: str = "a list of ids for each image, best first") -> Unavailable:
        return Unavailable(f"{self.name} returned {got}; allowed: {allowed}.{self._resume}")

    @property
    def _resume(self) -> str:
        kept = "Its answers so far are kept; run" if self._log is not None else "Run"
        return f" {kept} the same command again to go on from here."


class HttpRetriever(RetrievalTarget):
    """A search engine behind an address, asked by POST: {"inputs": [[...]], "k": 10} with images [n, C, H, W].

    It answers {"ids": [[...]]}, a ranked list for each image, in order. Without k the question has none, and a list has as
    many ids as the engine's first one.
    """

    def __init__(
        self,
        url: str,
        *,
        k: int | None = None,
        images: str | None = None,
        name: str | None = None,
        shape: tuple[int, ...] | None = None,
        batch: int = 32,
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 0.5,
        headers: Mapping[str, str] | None = None,
        log: str | PathLike[str] | None = None,
    ) -> None:
        """images: the address or path of an item's picture, with {id} in it. timeout, retries, backoff, headers: as for
        `HttpTarget`; the rest as for `RetrievalTarget`."""
        self.url = url
        self._caller = Caller(url, timeout, retries, backoff, headers, log is not None)
        super().__init__(None, k, images, name=name or url, shape=shape, batch=batch, log=log)

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.url, self._declared)).encode()).hexdigest()[:32]

    def _answering(self) -> str:
        return f"{self.url} k={self._declared}"

    def ask(self, x: Tensor) -> Any:
        allowed = '{"ids": [[...]]}, one list for each image'
        asked = {} if self._declared is None else {"k": self._declared}
        answer = self._caller.post({"inputs": x.numpy().tolist(), **asked}, allowed)
        if not isinstance(answer, dict) or "ids" not in answer:
            got = (
                f"the keys {sorted(map(str, answer))[:5]}" if isinstance(answer, dict) else f"a {type(answer).__name__}"
            )
            raise self._caller.garbage(got, allowed)
        return answer["ids"]


class ImageIndex(RetrievalTarget):
    """A search engine of one's own: a gallery of images, embedded by a model and searched exactly.

    >>> engine = ImageIndex(model, gallery, k=10)
    >>> engine(x)[0]
    [412, 17, ...]

    embedding: a module or target, images [N, C, H, W] in [0, 1] -> vectors [N, ...], which are flattened. gallery: float
    [M, C, H, W]; it stays in memory as what the items look like. ids: of the items, default their positions. metric,
    backend: see `withstand.index.Index`. A query that is itself in the gallery finds itself first.

    Raises: BadInput for an empty gallery, k > M, and ids that are not M different ones.
    """

    def __init__(
        self,
        embedding: Any,
        gallery: Tensor,
        k: int = 10,
        ids: Sequence[Item] | None = None,
        *,
        metric: Any = "cosine",
        backend: Any = "auto",
        name: str | None = None,
        batch: int = 256,
        log: str | PathLike[str] | None = None,
    ) -> None:
        self.embedding, self.gallery = as_embedding(embedding), self._images(gallery)
        if not len(gallery):
            raise bad("gallery", "no images", "at least one", "The index would be empty.")
        if not 1 <= k <= len(gallery):
            raise bad("k", k, f"1 to {len(gallery)}, the size of the gallery")
        self.ids = list(range(len(gallery))) if ids is None else list(ids)
        if len(set(self.ids)) != len(gallery):
            raise bad("ids", f"{len(set(self.ids))} different ones", f"{len(gallery)}, one for each image")
        self._position = {item: i for i, item in enumerate(self.ids)}
        vectors = torch.cat([self.embed(part) for part in self.gallery.split(batch)])
        self.index = Index(vectors, metric, backend)
        name = name or type(self).__name__
        self.k = k  # of the fingerprint, by which the log is known
        super().__init__(self._search, k, self._shown, name=name, shape=gallery.shape[1:], batch=batch, log=log)

    def embed(self, x: Tensor) -> Tensor:
        """Vectors [N, D] of images."""
        with torch.no_grad(), frozen(self.embedding):
            return self.embedding(x.to(next(self.embedding.parameters(), x).device)).cpu()

    def fingerprint(self) -> str:
        """Changes with the gallery's vectors, their ids and the length of the lists."""
        held = f"{self.index.fingerprint()} {self.ids} {self.k}"
        return hashlib.sha256(held.encode()).hexdigest()[:32]

    def _answering(self) -> str:
        return f"index {self.fingerprint()}"

    def _search(self, x: Tensor) -> list[list[Item]]:
        assert self.k is not None
        return [[self.ids[i] for i in found] for found in self.index.search(self.embed(x), self.k)[1].tolist()]

    def _shown(self, item: Item) -> Tensor:
        return self.gallery[self._position[item]]


class Flat(nn.Module):
    """Around a model: its output flattened to vectors [N, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() < 2 or len(out) != len(x):
            got = f"{out.dtype} {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise bad("embedding", f"an output of {got} for {len(x)} images", "float vectors [N, D]")
        return out.flatten(1)


def as_embedding(model: Any) -> nn.Module:
    """A module that maps images to vectors [N, D]. Raises: BadInput for what has no module."""
    if isinstance(model, Flat):
        return model
    module = as_target(model).module if not isinstance(model, nn.Module) else model
    if module is None:
        raise bad("embedding", f"{model!r}, which only answers queries", "a torch module")
    return Flat(module)


def _plain(value: Any) -> Any:
    """Lists and numbers for tensors, arrays, tuples and their scalars."""
    value = value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value
    return list(value) if isinstance(value, tuple) else value


def _seen(show: Any, item: Item, shape: tuple[int, ...]) -> Tensor:
    if isinstance(show, str):
        if not show.startswith(_WEB) and ".." in Path(str(item)).parts:
            raise bad("id", repr(item), "an item below the folder of the pictures")
        name = quote(str(item)) if show.startswith(_WEB) else str(item)
        return _opened(show.replace("{id}", name), item, shape)
    try:
        image = torch.as_tensor(show[item] if isinstance(show, Mapping) else show(item))
    except (LookupError, ValueError, TypeError, OSError) as error:
        raise bad("id", f"{item!r} ({type(error).__name__}: {error})", "an item that image_of_id knows") from None
    if tuple(image.shape) != shape or not image.is_floating_point():
        raise bad(f"image of {item!r}", f"{image.dtype} {list(image.shape)}", f"float {list(shape)}, as the queries")
    if not (float(image.min()) >= 0 and float(image.max()) <= 1):
        raise bad(f"image of {item!r}", f"values in [{float(image.min()):.4g}, {float(image.max()):.4g}]", "[0, 1]")
    return image


def _opened(place: str, item: Item, shape: tuple[int, ...]) -> Tensor:
    """A picture file as [C, H, W], in the channels and the size of the queries."""
    try:
        content = Caller(place).get() if place.startswith(_WEB) else Path(place).read_bytes()
        with Image.open(io.BytesIO(content)) as file:
            picture = file.convert("L" if shape[0] == 1 else "RGB").resize(
                (shape[2], shape[1]), Image.Resampling.BILINEAR
            )
    except OSError as error:
        raise bad("id", f"{item!r} ({error})", f"an item with a picture at {place}") from None
    pixels = torch.from_numpy(np.array(picture, np.float32) / 255)
    return pixels[None] if shape[0] == 1 else pixels.permute(2, 0, 1)
