"""`withstand attack`: adversarial examples as files."""

from pathlib import Path
from typing import Annotated

import typer

from withstand.cli import options as o


def run(
    model: Annotated[str, typer.Argument(metavar="[NAME=]MODEL", help="As for `withstand audit`.")],
    data: Annotated[str, typer.Option(help="A name of `withstand list data`, a folder of images, or an .npz.")],
    attack: Annotated[str, typer.Option(help="As `withstand list attacks` names them, e.g. 'pgd:steps=20,eps=8/255'.")],
    out: Annotated[Path, typer.Option(help="FILE.npz, or a folder for PNG files.")],
    weights: Annotated[Path | None, typer.Option(help="Weights of the model.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel of [0, 1], 0.485,0.456,0.406; or imagenet.")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    outputs: Annotated[
        str | None, typer.Option(metavar="logits|probabilities", help="What the models return; default logits.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, for architectures that are built for any.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the named data sets; default $WITHSTAND_DATA, else a cache at home.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a public data set that is missing (needs the internet).")
    ] = False,
    split: Annotated[str, typer.Option(help="The part of the data: test or train.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use so many examples only, of each class its share.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side in pixels that images are brought to.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3, to change between grey and RGB.")] = None,
    series: o.Series = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default the best at hand.")] = None,
    block: Annotated[int | None, typer.Option(min=1, help="Examples per pass; default by the device.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for the workers of a cluster.")] = "local",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load pickled weights: this runs whatever code they hold.")
    ] = False,
) -> None:
    """Write adversarial examples: an .npz or a folder of PNG files, with a manifest.

    The same command continues where an earlier one was stopped.
    """
    from withstand.audit.craft import craft
    from withstand.cli.console import progress, resumable, say, show
    from withstand.cli.specs import load_models, load_sample
    from withstand.registry import parse

    chosen = parse(attack, "attack")
    with resumable("The same command continues."), progress() as report:
        loaded, _ = load_models(
            [model], [str(weights)] if weights else None, mean, std, outputs, allow_pickle, classes=classes
        )
        made = craft(
            loaded,
            load_sample(data, split, limit, size, channels, root, download, series, loaded.values()),
            chosen,
            out,
            seed=seed,
            device=device,
            block=block,
            engine=engine,
            fresh=fresh,
            report=report,
            announce=say,
        )
    share = made["success"]
    if as_json:
        show(made)
    else:
        reached = f"{share['value']:.1%} (95 % interval {share['low']:.1%} to {share['high']:.1%})"
        show(f"{made['attack']}: reached its goal on {reached} of {share['n']} examples; written to {out}")
