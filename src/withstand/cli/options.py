"""Options that verbs share."""

from pathlib import Path
from typing import Annotated

import typer

TrainedModel = Annotated[
    str,
    typer.Argument(metavar="[NAME=]MODEL", help="timm:NAME, torchvision:NAME, zoo:NAME, FILE.py:FACTORY, artefact:DIR"),
]
Data = Annotated[
    str, typer.Option(help="A name of `withstand list data`, a folder of images, or an .npz with x and y.")
]
Augment = Annotated[
    list[str] | None, typer.Option(help="crop_flip or mixup, e.g. 'crop_flip(4)'; repeatable, in order.")
]
Averaging = Annotated[str | None, typer.Option(help="Of the weights: ema or swa, e.g. 'ema(0.999)'.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Parts into which a batch is cut to save memory.")]
ClipNorm = Annotated[float | None, typer.Option(help="Largest global norm of the gradient.")]
Validation = Annotated[float, typer.Option(min=0, max=0.9, help="Share of the data held out to choose the epoch.")]
Scratch = Annotated[bool, typer.Option("--scratch", help="Begin with fresh weights.")]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="Begin with these weights.")]
Mean = Annotated[str | None, typer.Option(help="Per channel of [0, 1], 0.485,0.456,0.406; or imagenet.")]
Std = Annotated[str | None, typer.Option(help="Likewise.")]
Classes = Annotated[int | None, typer.Option(min=1, help="Number of classes; default those of the data.")]
Root = Annotated[
    Path | None, typer.Option(help="Folder of the named data sets; default $WITHSTAND_DATA, else a cache at home.")
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a public data set that is missing (needs the internet).")
]
LearnedSplit = Annotated[
    str, typer.Option(help="The part of the data to learn from: train, or seen for half of the classes.")
]
JudgedSplit = Annotated[
    str, typer.Option(help="The part of the data: test, train, or unseen for the classes that seen leaves out.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use so many examples only, of each class its share.")]
Size = Annotated[int | None, typer.Option(min=1, help="Side in pixels that images are brought to.")]
Channels = Annotated[int | None, typer.Option(help="1 or 3, to change between grey and RGB.")]
Series = Annotated[
    str | None,
    typer.Option(
        metavar="normalised|raw",
        help="The x of an .npz is time series [N, C, T] or [N, T]; each brought to mean 0 and deviation 1, or as it is.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option(min=1, help="Processes per node.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")]
Loggers = Annotated[list[str] | None, typer.Option(help="tensorboard or mlflow, beside history.csv; repeatable.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Load pickled weights: this runs their code.")]
Layer = Annotated[
    str | None,
    typer.Option(help="Of a classifier that embeds: the part whose output counts, not what its head reads."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default the best at hand.")]
Block = Annotated[int | None, typer.Option(min=1, help="Examples per pass; default by the device.")]
Engine = Annotated[str, typer.Option(help="local, or ray for the workers of a cluster.")]
