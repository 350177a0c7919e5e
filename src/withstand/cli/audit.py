"""`withstand audit`: what models withstand, and whether to believe it."""

from pathlib import Path
from typing import Annotated

import typer

from withstand.cli import options as o
from withstand.cli.console import Format


def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="timm:NAME, torchvision:NAME, hf:REPO, FILE.py:FACTORY, FILE.onnx or http(s)://.../predict; the first "
            "is what the others are compared with. None at all, or `demo`: the embedded demo.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A name of `withstand list data`, a folder of images, or an .npz with x and y.")
    ] = None,
    preset: Annotated[str, typer.Option(help="quick (about a minute for a small model), standard or full.")] = "",
    checks: Annotated[
        list[str] | None,
        typer.Option(
            "--checks", metavar="CHECK,...", help="Instead of the preset's; repeatable, e.g. clean,robust:examples=50."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/NAMES-DATA-PRESET.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="Weights of the models, in their order or by name; repeatable."),
    ] = None,
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
    given: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SPEC", help="What checks need: surrogate=MODEL, guide=MODEL, ood=DATA; repeatable."),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for the workers of a cluster.")] = "local",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of continuing the run in the folder.")
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL/]METRIC[@THREAT]=VALUE",
            help="Exit with code 1 where a number is worse, e.g. robust_accuracy@linf:8/255=0.30; repeatable.",
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="What is printed on stdout.")] = Format.text,
    model_card: Annotated[
        Path | None, typer.Option(help="Write a model-index block for a Hugging Face model card to this file.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load pickled weights: this runs whatever code they hold.")
    ] = False,
) -> None:
    """Find out what models withstand, and whether to believe it.

    The same command with the same folder continues a run that was stopped, at whatever moment.
    """
    from withstand.audit import audit
    from withstand.audit.presets import checks_of
    from withstand.audit.requirements import Requirement
    from withstand.cli.console import print_card, progress, resumable, say
    from withstand.cli.specs import load_models, load_sample, run_folder, split_given
    from withstand.cli.values import listed
    from withstand.errors import bad

    for text in fail_under or []:
        Requirement.read(text)
    demo = models in (None, [], ["demo"])
    if not demo and data is None:
        raise bad("--data", "nothing", "the data to audit on", "For example --data cifar10; see: withstand list data")
    if demo and (data, weights, mean, std) != (None, None, None, None):
        raise bad("MODEL", "none, with --data, --weights, --mean or --std", "a model to go with them")
    checks = listed(checks) if checks else None
    preset = preset or ("quick" if demo else "standard")
    checks_of(preset, checks)  # refused before models are loaded
    folder = out or run_folder(models if not demo else None, data, "checks" if checks else preset)
    with resumable(f"The same command continues in {folder}"):
        if demo:
            from withstand.audit.demo import demo_models

            loaded, others = demo_models(folder, say), dict(map(split_given, given or []))
            examples = load_sample("digits", limit=limit)
        else:
            assert models is not None
            assert data is not None
            loaded, others = load_models(models, weights, mean, std, outputs, allow_pickle, given, classes)
            examples = load_sample(data, split, limit, size, channels, root, download, series, loaded.values())
        with progress() as report:
            card = audit(
                loaded,
                examples,
                preset,
                checks=checks,
                given=others,
                out=folder,
                seed=seed,
                device=device,
                block=block,
                engine=engine,
                fresh=fresh,
                report=report,
                announce=say,
            )
    print_card(card, format, fail_under or [], model_card)
