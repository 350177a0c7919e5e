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
    mean: o.Mean = None,
    std: o.Std = None,
    outputs: Annotated[
        str | None, typer.Option(metavar="logits|probabilities", help="What the models return; default logits.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, for architectures that are built for any.")
    ] = None,
    root: o.Root = None,
    download: o.Download = False,
    split: o.JudgedSplit = "test",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    series: o.Series = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    block: o.Block = None,
    log: Annotated[
        Path | None, typer.Option(help="Questions to an address and its answers: what it holds is not asked again.")
    ] = None,
    engine: o.Engine = "local",
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
            [model],
            [str(weights)] if weights else None,
            mean,
            std,
            outputs,
            allow_pickle,
            classes=classes,
            log=log,
            task="retrieval" if chosen.access == "top_k" else "classification",
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
        show(
            f"{made['attack']}: reached its goal on {reached} of {share['n']} examples, "
            f"counting those that needed no change; written to {out}"
        )
