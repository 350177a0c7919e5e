"""`withstand shift`: the public benchmarks of distribution shift; corrupted sets made offline; RobustBench's protocol."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from withstand.cli import options as o
from withstand.cli.console import Format


class _Evaluating(TyperGroup):
    """`withstand shift imagenet-a ...` means `withstand shift evaluate imagenet-a ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["evaluate", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Evaluating,
    help="Public benchmarks of distribution shift: `withstand shift imagenet-a imagenet-r --root DATA --model timm:...`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Models = Annotated[
    list[str],
    typer.Option("--model", "--models", metavar="[NAME=]MODEL", help="As for `withstand audit`; repeatable."),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]FILE", help="Weights of the models, in their order or by name; repeatable."),
]


@app.command("evaluate")
def evaluate(
    benchmarks: Annotated[
        list[str],
        typer.Argument(
            metavar="BENCHMARK...",
            help="imagenet, imagenet-v2, -a, -r, -c, -e, -sketch, stylized, objectnet, cifar10-c, cifar100-c.",
        ),
    ],
    root: Annotated[Path, typer.Option(help="The folder that holds them, or the folder of a single one.")],
    models: Models,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/shift-MODELS-BENCHMARKS.")] = None,
    weights: Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, for architectures that are built for any.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score what is there of an incomplete set; labelled subset-n.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Images of each set or cell, every class with its share; labelled subset-n."),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the input; default the model's own.")] = None,
    crop: Annotated[
        float | None, typer.Option(help="Share of the resized side that is kept; default the model's own, or 0.875.")
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="bilinear or bicubic; default the model's own, or bilinear.")
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    block: o.Block = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode; default one for each core.")] = None,
    no_look: Annotated[
        bool, typer.Option("--no-look", help="Do not open every file first; damaged ones then stop the run midway.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL/]BENCHMARK[:METRIC]=VALUE",
            help="Exit with code 1 where a number is worse, e.g. imagenet-a=0.1 or imagenet-c:mce=70; repeatable.",
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="text, json or markdown.")] = Format.text,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Score models on the public benchmarks of distribution shift, in one table, beside published figures.

    For example: withstand shift imagenet-a imagenet-r imagenet-c --root DATA --model timm:resnet50

    What is on the disk is checked first: counts, class folders, damaged files. The same command continues where an earlier
    one was stopped, at whatever moment.
    """
    from withstand.audit.shift import shift
    from withstand.audit.shift.scores import check_requirement, misses
    from withstand.cli.console import progress, resumable, say, show, table
    from withstand.cli.specs import load_models, split_name
    from withstand.corruptions import corruption_names
    from withstand.data.shift.disk import locate
    from withstand.data.shift.table import benchmark
    from withstand.errors import NotMet, bad
    from withstand.files import slug
    from withstand.report.shift import markdown, notes, summary

    if format is Format.junit:
        raise bad("--format", "junit", "text, json or markdown")
    asked = [benchmark(name) for text in benchmarks for name in text.split(",") if name]
    for one in asked:  # before models are loaded
        locate(one, root, corruption_names("all"), len(asked) == 1)
    given = [slug(name or spec) for name, spec in map(split_name, models)]
    folder = out or Path("runs") / ("shift-" + "-".join([*given, *(b.name for b in asked)]))[:120]
    with resumable(f"The same command continues in {folder}"):
        loaded, _ = load_models(models, weights, mean, std, None, allow_pickle, classes=classes)
        for requirement in fail_under or []:
            check_requirement(requirement, [*loaded], [b.name for b in asked])
        with progress() as report:
            found = shift(
                loaded, asked, root=root, out=folder, partial=partial, limit=limit, seed=seed, size=size, crop=crop,
                interpolation=interpolation, device=device, block=block, workers=workers, look=not no_look,
                fresh=fresh, report=report, announce=say,
            )  # fmt: skip
    if format is Format.json:
        show(found)
    elif format is Format.markdown:
        show(markdown(found).rstrip("\n"))
    else:
        show(table(summary(found)))
        for line in notes(found):
            say(line)
        say(f"all numbers: {folder / 'shift.json'}; page: {folder / 'index.html'}")
    if failures := [text for requirement in fail_under or [] for text in misses(found, requirement)]:
        raise NotMet("; ".join(failures))


@app.command("make")
def make(
    layout: Annotated[Any, typer.Argument(metavar="LAYOUT", help="cifar10-c, cifar100-c or imagenet-c.", parser=str)],
    source: Annotated[
        str,
        typer.Option(
            "--from", help="cifar10, an .npz or a folder of small images; for imagenet-c the folder of imagenet-val."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the set.")],
    root: o.Root = None,
    split: o.JudgedSplit = "test",
    kinds: Annotated[
        list[str] | None, typer.Option(help="Corruptions, e.g. fog,snow; repeatable; default the 15 common ones.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many images.")] = None,
    seed: o.Seed = 0,
    frost: Annotated[
        Path | None, typer.Option(help="Folder of frost photographs; without it frost is procedural (frost*).")
    ] = None,
) -> None:
    """Make a corrupted test set from clean images, in the layout of CIFAR-10-C or ImageNet-C.

    For example: withstand shift make cifar10-c --from cifar10 --out data/CIFAR-10-C

    The same command continues where an earlier one was stopped.
    """
    from withstand.cli.console import progress, resumable, say
    from withstand.corruptions import corruption_names, make_corrupted
    from withstand.data import load_data

    chosen = [kind for text in kinds or [",".join(corruption_names("common"))] for kind in text.split(",")]
    data: Any = source if layout == "imagenet-c" else load_data(source, root, split, limit)
    with resumable("The same command continues."), progress() as report:
        place = make_corrupted(
            layout, data, out, kinds=chosen, limit=limit, seed=seed, frost_textures=frost,
            report=lambda kind, done, total: report(layout, kind, done, total),
        )  # fmt: skip
    say(f"{place}: {len(chosen)} corruptions at 5 severities")


@app.command("robustbench")
def robustbench(
    model: o.TrainedModel,
    data: o.Data,
    out: Annotated[Path, typer.Option(help="Folder for robustbench.json and the outcome of every image.")],
    threat: Annotated[str, typer.Option(help="linf(8/255), l2(0.5), ...")] = "linf(8/255)",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many images.")] = None,
    about: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=TEXT", help="name, authors, link, venue, architecture, additional_data, ...; repeatable."
        ),
    ] = None,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    root: o.Root = None,
    split: o.JudgedSplit = "test",
    size: o.Size = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    block: o.Block = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Clean accuracy and accuracy under AutoAttack (standard), as a record in RobustBench's field names.

    For example: withstand shift robustbench artefact:runs/robust --data cifar10 --out runs/rb

    The same command continues where an earlier one was stopped.
    """
    from withstand.audit.robustbench import robustbench_eval
    from withstand.cli.console import progress, resumable, show
    from withstand.cli.specs import load_one, split_name
    from withstand.data import load_data
    from withstand.errors import bad

    said: dict[str | None, Any] = dict(map(split_name, about or []))
    if None in said:
        raise bad("--about", repr(said[None]), "FIELD=TEXT, e.g. venue='NeurIPS 2021'")
    if (extra := said.get("additional_data")) is not None:
        if extra not in ("true", "false"):
            raise bad("--about additional_data", repr(extra), "true or false")
        said["additional_data"] = extra == "true"
    if (passes := said.get("number_forward_passes")) is not None:
        if not passes.isdecimal() or int(passes) < 1:
            raise bad("--about number_forward_passes", repr(passes), "a whole number >= 1")
        said["number_forward_passes"] = int(passes)
    target = load_one(model, weights, mean, std, device, allow_pickle)
    examples = load_data(data, root, split, limit, size=size)
    with resumable("The same command continues."), progress() as report:
        record = robustbench_eval(
            {target.name: target}, examples, threat, out=out, about={k: v for k, v in said.items() if k}, seed=seed,
            device=device, block=block, fresh=fresh, report=report,
        )  # fmt: skip
    show(record)
