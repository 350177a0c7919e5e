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
            help="timm:NAME, torchvision:NAME, hf:REPO, zoo:NAME, FILE.py:FACTORY, artefact:FOLDER, FILE.onnx or "
            "http(s)://.../predict; the first is what the others are compared with. None at all, or `demo`: the "
            "embedded demo.",
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
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SPEC",
            help="What checks need: surrogate=MODEL, guide=MODEL, ood=DATA, gallery=DATA, masks=DATA.",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="classification; retrieval for search by embeddings, or by engines behind http(s)://.../retrieve or "
            "FILE.py:FACTORY; hashing for lookup by codes. Artefacts know their own."
        ),
    ] = "classification",
    layer: o.Layer = None,
    log: Annotated[
        Path | None, typer.Option(help="Questions to an address and its answers: what it holds is not asked again.")
    ] = None,
    engine: o.Engine = "local",
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
    from withstand.audit.presets import OTHERS, checks_of
    from withstand.audit.requirements import Requirement
    from withstand.cli.console import print_card, progress, resumable, say
    from withstand.cli.specs import load_models, load_sample, run_folder, split_given
    from withstand.cli.values import listed
    from withstand.errors import bad, unknown

    required = [Requirement.read(text) for text in fail_under or []]
    demo = models in (None, [], ["demo"])
    if not demo and data is None:
        raise bad("--data", "nothing", "the data to audit on", "For example --data cifar10; see: withstand list data")
    if demo and (data, weights, mean, std) != (None, None, None, None):
        raise bad("MODEL", "none, with --data, --weights, --mean or --std", "a model to go with them")
    if task not in ("classification", *OTHERS):
        raise unknown("task", task, ("classification", *OTHERS))
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
            loaded, others = load_models(
                models, weights, mean, std, outputs, allow_pickle, given, classes, task, log, layer
            )
            examples = load_sample(data, split, limit, size, channels, root, download, series, loaded.values())
        for requirement in required:
            requirement.check_model(loaded)
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
