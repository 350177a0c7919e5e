"""What editing one attribute of the object, or its background, costs a classifier."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from withstand.audit.check import Check, Table
from withstand.audit.gallery import gallery, keep_worst
from withstand.audit.measure import confidence, labelled, predict
from withstand.errors import bad, unknown
from withstand.protocols import Batch, Context, Dataset, Figure, Findings, Metric, Need, Row, Target
from withstand.registry import component

_SCENES = 16
"""Other examples whose backgrounds stand behind objects."""
_KEPT = 3
"""Broken images of an edit that a shard looks through for the gallery."""
_CONTROL = "inver"
_LUMA = (0.299, 0.587, 0.114)
_NUMBER = re.compile(r"\d+(\.\d+)?")


@component("check", "attributes", systems=("imagenet_e",))
class Attributes(Check):
    """Accuracy that is lost when one attribute is edited: what lies behind the object, its size, place and direction.

    The edits of ImageNet-E, each of the same images: backgrounds plainer (-20), busier (20), of another example (random);
    the object as large as its crop allows (full), at 10, 8 and 5 % of the picture, at 5 % anywhere (rp), turned by up to 45
    degrees (rd); and with a model given as "guide" a background that leads it astray (20-adv). Dropped accuracy is that on
    the images as they are less that on their edits, with the interval of Agresti and Min for matched pairs. Beside it
    stands the control, inver, where the object is only taken out and put back: what it costs is no attribute's doing. The
    average is over all edits but the control, with a bootstrap over images. What cannot be edited is skipped and counted as
    nothing; how much, and why, is in the table.

    Masks of the objects come as "masks", images of the same names or ids (see `withstand.editing.masked.Masked`); without
    them GrabCut looks for the objects, and misses many that do not stand out in the middle. Where no other example's object
    can be taken out, a procedural texture is the random background. Grey images are edited as colour ones and made grey
    again. Presets hold this check where masks are given.

    edits: which; None takes all that are possible. The control is always among them. variant: see
    `withstand.editing.ObjectEditor`. diffusion: the local folder of a diffusion pipeline that paints the backgrounds at
    the images' size; None changes their spectrum, which needs no weights. start: how many of its 100 steps are run.

    Reference: Li, Chen, Zhu, Wang, Zhang, Xue, "ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing",
    2023, arXiv 2303.17096.
    """

    edits: tuple[str, ...] | None = None
    variant: Literal["exact", "published"] = "exact"
    diffusion: str | None = None
    start: int = 75

    title = "Edited attributes"
    access = frozenset({"decision"})
    needs = (Need("masks", "data", optional=True), Need("guide", "model", optional=True))

    def __post_init__(self) -> None:
        from withstand.editing.imagenet_e import EDITS

        for name in self.edits or ():
            if name not in EDITS:
                raise unknown("edits", name, EDITS)
        if self.edits == ():
            raise bad("edits", "none", "at least one edit, or None for all")
        if not 0 <= self.start <= 100:
            raise bad("start", self.start, "0 to 100, steps of the diffusion")

    def names(self, guided: bool) -> list[str]:
        """The edits that run, the control first."""
        from withstand.editing.imagenet_e import EDITS, PLAIN

        asked = self.edits if self.edits is not None else EDITS if guided else PLAIN
        return [name for name in EDITS if name in asked or name == _CONTROL]

    def passes(self, target: Target) -> float:
        return 1.0 + len(self.names(True))

    def examples_of(self, data: Dataset, given: Mapping[str, Any]) -> Dataset:
        """The audited data, with the masks where they are given."""
        from withstand.editing.imagenet_e import ADVERSARIAL
        from withstand.editing.masked import Masked

        if ADVERSARIAL in (self.edits or ()) and "guide" not in given:
            raise bad("edits", ADVERSARIAL, "the others without a guide", "Give one: --given guide=MODEL.")
        if "guide" in given and "gradients" not in given["guide"].access:
            raise bad(
                "guide", f"{given['guide'].name}, without gradients", "a model with gradients, e.g. a torch module"
            )
        return Masked(data, given["masks"]) if "masks" in given else data

    def prepare(
        self, target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context
    ) -> dict[str, Tensor] | None:
        """The backgrounds of some examples, which stand behind the objects of others: scenes [M, 3, H, W] and ids [M].

        An example whose object cannot be taken out has none: its object would be beside the other's.
        """
        from withstand.editing import remove_object
        from withstand.editing.masks import fault

        held = self.examples_of(data, given)
        chosen = np.unique(np.linspace(0, len(held) - 1, _SCENES).round().astype(int))
        batch = held.batch(chosen.tolist())
        x, _, ids = labelled(batch)
        images = _coloured(_pictures(x))
        masks = _masks(images, batch.extra.get("object"))
        usable = [i for i, mask in enumerate(masks) if not fault(mask)]
        scenes = [remove_object(images[i], masks[i]) for i in usable]
        return {"scenes": torch.stack(scenes) if scenes else torch.zeros(0, *images[0].shape), "ids": ids.cpu()[usable]}

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        """{"edit": name}: outcome = right, value = the object's share of the image; edit "ori" is the image as it is.
        {"edit", "skipped": reason}: no outcome; of the reason, numbers are left out."""
        from withstand.editing.imagenet_e import edit_as

        x, y, ids = labelled(shard)
        names = self.names("guide" in given)
        editors = self._editors(names, given, x, ctx)
        images = _coloured(x)
        masks, searched = _masks(images, shard.extra.get("object")), "object" not in shard.extra
        before = confidence(predict(target, x, ctx))
        for id_, label, guess in zip(ids.tolist(), y.tolist(), before[1].tolist()):
            yield Row("image", id_, {"edit": "ori"}, label == guess, None, label, guess, cost=1)
        broken: list[tuple[str, Tensor, Tensor, Tensor, Tensor]] = []
        for done, name in enumerate(names):
            made = [
                edit_as(name, editors[name], image, mask, id_, label, _others(artefact, id_))
                for image, mask, id_, label in zip(images, masks, ids.tolist(), y.tolist())
            ]
            at = [i for i, m in enumerate(made) if not m.skipped]
            for i in sorted(set(range(len(made))) - set(at)):
                reason = _reason(made[i].reason, searched)
                yield Row("image", int(ids[i]), {"edit": name, "skipped": reason}, None, made[i].rate, int(y[i]))
            if at:
                changed = torch.stack([_like(made[i].image, x) for i in at]).to(x)
                sure, guess = confidence(predict(target, changed, ctx))
                for i, said in zip(at, guess.tolist()):
                    yield Row(
                        "image", int(ids[i]), {"edit": name}, int(y[i]) == said, made[i].rate, int(y[i]), said, cost=1
                    )
                turned = ((before[1][at] == y[at]) & (guess != y[at])).nonzero().flatten()
                worst = turned[sure[turned].argsort(descending=True, stable=True)[:_KEPT]]
                if name != _CONTROL:
                    places = torch.tensor(at, device=x.device)[worst]
                    broken += [(name, *facts) for facts in zip(places, changed[worst], sure[worst], guess[worst])]
            ctx.progress(len(x) * (done + 1) // len(names))
        if broken:
            edits, places, changed, sure, guess = zip(*broken)
            at, made = torch.stack(places), torch.stack(changed)
            after = (torch.stack(sure), torch.stack(guess))
            every = torch.ones(len(at), dtype=torch.bool, device=x.device)
            clean = before[0][at], before[1][at]
            keep_worst(ctx.folder, x[at], made, y[at], ids[at], clean, after, None, every, edits)

    def reduce(self, rows: Table, others: Mapping[str, Table], ctx: Context) -> Findings:
        from withstand.editing.dropped import average, dropped

        source = rows.where(edit="ori")
        order = np.argsort(source.id, kind="stable")  # in whatever order the shards came
        place = {id_: i for i, id_ in enumerate(source.id[order].tolist())}
        right = source.outcome[order]
        seen = {c["edit"] for c in rows.conditions()}
        names = [name for name in self.names(True) if name in seen]
        after, made = np.zeros((2, len(right), len(names)), bool)
        listed, bars = [], []
        found = Findings([rows.share("accuracy", edit="ori")])
        for e, name in enumerate(names):
            part = rows.where(edit=name, skipped=None)
            at = [place[i] for i in part.id.tolist()]
            made[at, e] = True
            after[at, e] = part.outcome
            reasons = _reasons(rows, name)
            if not at:
                listed.append([name, 0, len(right), "", "", "", reasons])
                continue
            d = dropped(name, right, after[:, e], made[:, e])
            found.metrics.append(
                _metric("dropped_accuracy", d.dropped, d.low, d.high, "agresti-min", d.n, {"edit": name})
            )
            said = f"{100 * d.dropped:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})".replace("-", "\N{MINUS SIGN}")
            listed.append([name, d.n, d.missing, f"{d.before:.1%}", f"{d.after:.1%}", said, reasons])
            bars.append((name, d))
        counted = [e for e, name in enumerate(names) if name != _CONTROL and made[:, e].any()]
        if counted:
            mean = average(right, after[:, counted], made[:, counted])
            said = {"edits": len(counted)}
            n = int(made[:, counted].any(1).sum())
            found.metrics.insert(1, _metric("mean_dropped_accuracy", *mean, "cluster bootstrap", n, said))
        if bars:
            found.figures.append(_bars(bars))
        columns = ["edit", "images", "skipped", "right before", "right after", "dropped (points)", "why skipped"]
        caption = (
            f"The model is right on {int(right.sum())} of {len(right)} images as they are. Every edit is compared with the "
            "same images unedited; what was skipped counts nowhere. inver is the control: the object is taken out and put "
            "back."
        )
        if not made.all():
            caption += " In the reasons, n stands for numbers that differ from image to image."
        found.figures.append(Figure("table", "What each edit costs", {"columns": columns, "rows": listed}, caption))
        if shown := gallery(ctx, {}, "Edits that broke it"):
            found.figures.append(shown)
        return found

    def _editors(self, names: list[str], given: Mapping[str, Any], x: Tensor, ctx: Context) -> dict[str, Any]:
        """The editor of every edit."""
        from withstand.editing import ObjectEditor
        from withstand.editing.imagenet_e import ADVERSARIAL, against

        painter = {"painter": _painter(self.diffusion, self.start, ctx.device)} if self.diffusion else {}
        plain = ObjectEditor(seed=ctx.seed, variant=self.variant, **painter)
        led = against(plain, _Guide(given["guide"], x)) if ADVERSARIAL in names else plain
        return {name: led if name == ADVERSARIAL else plain for name in names}


class _Guide(nn.Module):
    """A classifier as painters see it: of colour images, float32 on the processor, whatever it takes and wherever it is."""

    def __init__(self, target: Target, x: Tensor) -> None:
        super().__init__()
        self.target, self.grey, self.place, self.kind = target, x.shape[1] == 1, x.device, x.dtype

    def forward(self, x: Tensor) -> Tensor:
        x_in = (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) if self.grey else x
        return self.target(x_in.to(self.place, self.kind)).to(x)


@lru_cache(maxsize=2)
def _painter(folder: str, start: int, device: str) -> Any:
    from withstand.editing.diffusion import DiffusersPainter

    return DiffusersPainter(folder, start=start, device=device)


def _pictures(x: Tensor) -> Tensor:
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise bad("data", f"examples of shape {list(x.shape[1:])}", "images [C, H, W] with 1 or 3 channels")
    return x


def _coloured(x: Tensor) -> list[Tensor]:
    """Images [3, H, W] in main memory, which are edited."""
    return [image if len(image) == 3 else image.expand(3, -1, -1) for image in x.cpu()]


def _like(image: Tensor, x: Tensor) -> Tensor:
    """An edited image with the channels of the batch; where it is grey, that value stays bit for bit."""
    if x.shape[1] == 3:
        return image
    luma = (image * image.new_tensor(_LUMA).view(3, 1, 1)).sum(0)
    return torch.where(image.amax(0) == image.amin(0), image[0], luma)[None]


def _masks(images: list[Tensor], given: Tensor | None) -> list[Tensor]:
    """Where the objects are, bool [H, W] each."""
    from withstand.editing import GrabCut

    return list(given.cpu()) if given is not None else [GrabCut()(image) for image in images]


def _reason(text: str, searched: bool) -> str:
    """Why an image was skipped, without the numbers that differ from image to image."""
    text = _NUMBER.sub("n", text)
    return f"no object found ({text})" if searched and text.startswith(("the mask", "the object has")) else text


def _others(artefact: Any, id_: int) -> list[Tensor]:
    """Scenes of other examples."""
    held = zip(artefact["ids"].tolist(), artefact["scenes"]) if artefact else ()
    return [scene.cpu() for i, scene in held if i != id_]


def _reasons(rows: Table, name: str) -> str:
    """Why images were skipped, the most frequent reasons first."""
    counts = Counter[str]()
    for condition in rows.conditions():
        if condition["edit"] == name and "skipped" in condition:
            counts[condition["skipped"]] += len(rows.where(**condition))
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    return "; ".join(f"{n}: {reason}" for reason, n in most)


def _metric(
    name: str, value: float, low: float, high: float, interval: str, n: int, condition: dict[str, Any]
) -> Metric:
    return Metric(name, value, low, high, interval, n, "share", "lower", condition)


def _bars(found: list[tuple[str, Any]]) -> Figure:
    series = {
        "name": "dropped accuracy",
        "values": [d.dropped for _, d in found],
        "low": [d.low for _, d in found],
        "high": [d.high for _, d in found],
    }
    data = {"labels": [n for n, _ in found], "y_label": "dropped accuracy", "unit": "share", "series": [series]}
    caption = (
        "Accuracy on the images as they are less that on their edits; lower is better. The control, inver, says how much of "
        "that is the doing of taking the object out and putting it back."
    )
    return Figure("bars", "Dropped accuracy", data, caption)
