"""`withstand transfer`: how often points made on one model fool another."""

from pathlib import Path
from typing import Annotated

import typer

from withstand.cli import options as o


def run(
    surrogates: Annotated[
        list[str], typer.Option("--surrogates", metavar="[NAME=]MODEL", help="Attacked; one or several.")
    ],
    targets: Annotated[
        list[str],
        typer.Option(
            "--targets", metavar="[NAME=]MODEL", help="Judged; one or several; the NAME of a surrogate will do."
        ),
    ],
    data: Annotated[str, typer.Option(help="A name of `withstand list data`, a folder of images, or an .npz.")],
    out: Annotated[Path, typer.Option(help="Folder for the matrix, its page and its rows.")],
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attacks", help="As `withstand list attacks` names them; one or several. Default: mi ni di ti si vmi."
        ),
    ] = None,
    threat: Annotated[str, typer.Option(help="The set that all attacks search.")] = "linf(16/255)",
    weights: Annotated[
        list[str] | None, typer.Option(help="Weights: NAME=FILE, or a file for each model in order.")
    ] = None,
    mean: o.Mean = None,
    std: o.Std = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, for architectures that are built for any.")
    ] = None,
    root: o.Root = None,
    split: o.JudgedSplit = "test",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    series: o.Series = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each attack.")] = 1,
    seed: o.Seed = 0,
    device: o.Device = None,
    block: o.Block = None,
    engine: o.Engine = "local",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the matrix as JSON instead of Markdown.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load pickled weights: this runs whatever code they hold.")
    ] = False,
) -> None:
    """Attack surrogates and judge the points on targets: success rates with intervals, as a matrix.

    For example --surrogates a=zoo:cifar_resnet20 --targets a b=zoo:cifar_resnet56 --attacks mi di tpa.

    Only images that every model gets right count. The same command continues where an earlier one was stopped.
    """
    from withstand.audit.transfer import transfer
    from withstand.cli.console import progress, resumable, say, show
    from withstand.cli.specs import load_models, load_sample, split_name
    from withstand.cli.values import listed
    from withstand.errors import bad
    from withstand.report.transfer import markdown

    with resumable("The same command continues."), progress() as report:
        known = {name: text for text in surrogates if (name := split_name(text)[0])}
        for text in targets:
            if text not in known and not set(":./") & set(text):
                raise bad("--targets", repr(text), f"[NAME=]MODEL, or the NAME of a surrogate: {', '.join(known)}")
        targets = [known.get(text, text) for text in targets]
        every = list(dict.fromkeys([*surrogates, *targets]))
        loaded, _ = load_models(every, weights, mean, std, None, allow_pickle, classes=classes)
        named = dict(zip(every, loaded))
        found = transfer(
            {named[text]: loaded[named[text]] for text in surrogates},
            {named[text]: loaded[named[text]] for text in targets},
            load_sample(data, split, limit, size, channels, root, series=series, models=loaded.values()),
            listed(attacks or ["mi", "ni", "di", "ti", "si", "vmi"]),
            out=out,
            threat=threat,
            seeds=seeds,
            seed=seed,
            device=device,
            block=block,
            engine=engine,
            fresh=fresh,
            report=report,
            announce=say,
        )
    show(found if as_json else markdown(found))
