"""`withstand index build|query`: a folder of encoded images that can be searched by image."""

from pathlib import Path
from typing import Annotated, Any

import typer

from withstand.cli import options as o

app = typer.Typer(
    help="Build and ask an index of images, by the vectors or codes of a model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Encoding = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="artefact:DIR, FILE.py:FACTORY, timm:NAME, ...; what embeds or hashes, or a classifier's features.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="What MODEL does: embedding, hashing or classification (by its features). Artefacts know theirs."
    ),
]


@app.command("build")
def build(
    model: Encoding,
    data: o.Data,
    out: Annotated[Path, typer.Option(help="Folder for the index.")],
    kind: Annotated[
        str | None,
        typer.Option(help="flat (exact), hnsw (nearly so, faster) or binary (codes); default flat, of codes binary."),
    ] = None,
    task: Task = None,
    layer: o.Layer = None,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    root: o.Root = None,
    download: o.Download = False,
    split: o.JudgedSplit = "train",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    device: o.Device = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Encode a data set and keep it, with the fingerprint of the model that did it.

    For example: withstand index build artefact:runs/mdprop --data cars --split unseen --out runs/cars-index
    """
    from withstand import index
    from withstand.cli.console import say
    from withstand.cli.specs import load_sample

    encoder = _encoder(model, task, layer, weights, mean, std, device, allow_pickle)
    examples = load_sample(data, split, limit, size, channels, root, download)
    folder = index.build(encoder, examples, kind).save(out)  # type: ignore[arg-type]
    say(f"{folder}: {index.load(folder)!r}")


@app.command("query")
def query(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `withstand index build` wrote.")],
    model: Encoding,
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Image files to ask with.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Or a data set: a name, a folder of images, or an .npz with x and y.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items for each query.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    task: Task = None,
    layer: o.Layer = None,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    root: o.Root = None,
    split: o.JudgedSplit = "test",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    device: o.Device = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Find the items nearest to images. The model must be the one that made the index, with the same weights."""
    from withstand import index
    from withstand.cli.console import say, show, table
    from withstand.cli.specs import load_sample
    from withstand.errors import bad

    if bool(images) == (data is not None):
        raise bad("IMAGE or --data", "both" if images else "neither", "one of the two")
    shelf = index.load(folder)
    encoder = _encoder(model, task, layer, weights, mean, std, device, allow_pickle)
    made_for = shelf.origin.get("shape") or (None, None, None)
    if len(made_for) == 3 and data is None:
        size, channels = size or made_for[-1], channels or made_for[0]
    if images:
        examples, names = _files(images, size, channels or 3), [str(path) for path in images]
    else:
        assert data is not None
        examples = load_sample(data, split, limit, size, channels, root)
        if len(made_for) == 3 and size is channels is None and list(examples.space.shape or ()) != list(made_for):
            say(f"{data}: images are brought to {' x '.join(map(str, made_for))}, as those of the index")
            examples = load_sample(data, split, limit, made_for[-1], made_for[0], root)
        names = [f"{examples.name} #{i}" for i in examples.positions.tolist()]
    answers: list[dict[str, Any]] = []
    for begin in range(0, len(examples), 256):
        batch = examples.batch(range(begin, min(begin + 256, len(examples))))
        for place, items in enumerate(shelf.query(encoder, batch.x, k)):
            found = [{"id": i.id, "distance": i.distance, "label": i.label, "file": i.file} for i in items]
            answers.append({"query": names[begin + place], "items": found})
    if as_json:
        show(answers)
        return
    unit = "bits" if shelf.kind == "binary" else "distance"
    rows = []
    for answer in answers:
        for rank, item in enumerate(answer["items"], 1):
            far = f"{item['distance']:.0f}" if unit == "bits" else f"{item['distance']:.4f}"
            rows.append({"query": answer["query"] if rank == 1 else "", "rank": str(rank), "item": f"#{item['id']}"})
            rows[-1] |= {unit: far, "label": item["label"], "file": item["file"]}
    show(table(rows))


def _encoder(
    model: str,
    task: str | None,
    layer: str | None,
    weights: str | None,
    mean: str | None,
    std: str | None,
    device: str | None,
    allow_pickle: bool,
) -> Any:
    from withstand.cli.specs import load_one
    from withstand.errors import unknown
    from withstand.models import Encoder

    tasks = ("classification", "embedding", "hashing")
    if task not in (None, *tasks):
        raise unknown("task", str(task), tasks)
    target = load_one(model, weights, mean, std, device, allow_pickle, task or "classification")
    return Encoder(target, layer)


def _files(images: list[Path], size: int | None, channels: int) -> Any:
    """Image files as a data set without labels. Raises: BadInput for files that are not there or no images."""
    from withstand.data.images import Images, PhotoSource
    from withstand.data.photos import Fit, Photo
    from withstand.errors import bad

    for path in images:
        if not path.is_file():
            raise bad("IMAGE", path, "a file", "For a folder: --data FOLDER.")
    photos = tuple(Photo(str(path)) for path in images)
    return Images.of("images", PhotoSource(photos, None, (), "images", Fit(size, channels)))
