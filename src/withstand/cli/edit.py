"""`withstand edit`: one attribute of the object in each image, changed."""

from pathlib import Path
from typing import Annotated

import typer

from withstand.cli import options as o


def run(
    images: Annotated[Path, typer.Argument(help="An image, or a folder of images with any subfolders.")],
    out: Annotated[Path, typer.Option(help="Folder for the images, their masks and the manifest.")],
    size: Annotated[
        str | None, typer.Option(metavar="RATE|full", help="Share of the image that the object gets, e.g. 0.05.")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(metavar="DEGREES|random", help="Counter-clockwise, about the object's middle.")
    ] = None,
    position: Annotated[
        str | None, typer.Option(metavar="random|ROW,COLUMN", help="Of the upper left corner of the object's box.")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            help="plain:20, complex:20, random (another image's), procedural, adversarial:20 (with --guide), or "
            "identity: object taken out and put back, the control."
        ),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks under the images' names (object above 127).")
    ] = None,
    segmenter: Annotated[
        str,
        typer.Option(help="Without masks: grabcut, torchvision:NAME, transformers:FOLDER or FILE.py:FACTORY."),
    ] = "grabcut",
    segmenter_weights: Annotated[Path | None, typer.Option(help="Weights of torchvision:NAME.")] = None,
    object_: Annotated[
        str | None, typer.Option("--object", help="Class that the segmenter is to find; default the largest object.")
    ] = None,
    guide: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Classifier that an adversarial background leads astray.")
    ] = None,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    variant: Annotated[
        str, typer.Option(help="exact, or published: sizes within 0.015, turned about the image's middle, cut there.")
    ] = "exact",
    filling: Annotated[
        str, typer.Option(help="How removed objects are filled: telea, navier_stokes or harmonic.")
    ] = "telea",
    seed: o.Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Edit the object of each image: its size, direction and place, and what lies behind it.

    For example: withstand edit photos --size 0.05 --position random --background complex:20 --out edited. Whatever cannot be
    edited as asked is skipped and listed in the manifest with its reason. The same command continues where one was stopped.
    """
    from withstand.cli.console import progress, resumable, say, show
    from withstand.cli.specs import load_one
    from withstand.editing import edit

    live = guide
    if guide is not None and (weights, mean, std) != (None, None, None):
        live = load_one(guide, weights, mean, std, None, allow_pickle)
    with resumable("The same command continues."), progress() as report:
        rows = edit(
            images,
            out,
            size=_rate(size),
            direction=_degrees(direction),
            position=_place(position),
            background=background,
            masks=masks,
            segmenter=segmenter,
            segmenter_weights=segmenter_weights,
            wanted=object_,
            guide=live,
            seed=seed,
            variant=variant,  # type: ignore[arg-type]  (edit refuses others)
            filling=filling,  # type: ignore[arg-type]
            jobs=jobs,
            allow_pickle=allow_pickle,
            report=lambda done, total: report("edit", str(images), done, total),
        )
    if as_json:
        show(rows)
        return
    skipped = [row for row in rows if row["skipped"]]
    for row in skipped[:5]:
        say(f"skipped {row['file']}: {row['reason']}")
    if len(skipped) > 5:
        say(f"... and {len(skipped) - 5} more; see {out / 'manifest.csv'}")
    show(f"{len(rows) - len(skipped)} of {len(rows)} images edited; written to {out}")


def _rate(text: str | None) -> float | str | None:
    return text if text in (None, "full") else _number("--size", text, 'a share of the image, e.g. 0.05, or "full"')


def _degrees(text: str | None) -> float | str | None:
    return text if text in (None, "random") else _number("--direction", text, 'degrees, e.g. 45, or "random"')


def _place(text: str | None) -> str | tuple[int, int] | None:
    from withstand.errors import bad

    if text in (None, "random"):
        return text
    row, _, column = text.partition(",")
    if not (row.strip().isdecimal() and column.strip().isdecimal()):
        raise bad("--position", repr(text), '"random", or ROW,COLUMN in pixels, e.g. 10,40')
    return int(row), int(column)


def _number(option: str, text: str, allowed: str) -> float:
    from withstand.errors import bad

    try:
        return float(text)
    except ValueError:
        raise bad(option, repr(text), allowed) from None
