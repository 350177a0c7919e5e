"""The trainer: one loop for every recipe, which knows none of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PlainValidator
from torch import nn

from withstand.errors import bad, unknown
from withstand.protocols import Dataset
from withstand.registry import coerce, component
from withstand.training.augment import AugmentationsField
from withstand.training.optimizers import SGD, OptimizerField, ScheduleField, Steps
from withstand.training.overfitting import robust_generalisation_gap, robust_overfitting_gap
from withstand.training.samplers import SamplerField

AveragingField = Annotated[Any, PlainValidator(coerce("averaging"))]


@dataclass
class Fitted:
    """What a training made.

    model: the best by validation where there was one, else the last; in eval mode. last: the last. history: one row per
    epoch. best_epoch: counted from 1, None without validation. steps: updates of the main optimiser. stopped: why it ended
    before its time, else "". folder: where it was written. rank: of this process; the first, 0, is the one that writes.
    """

    model: nn.Module
    last: nn.Module
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    steps: int = 0
    stopped: str = ""
    folder: Path | None = None
    rank: int = 0

    @property
    def overfitting_gap(self) -> float | None:
        """How much robust accuracy on the validation set fell from its best epoch to the last; see
        `withstand.training.overfitting`."""
        return robust_overfitting_gap(self.history)

    @property
    def generalisation_gap(self) -> float | None:
        """How far robust accuracy on the validation set lies below that on the training set at the end."""
        return robust_generalisation_gap(self.history)


@dataclass(frozen=True)
class Moment:
    """Where a training stands, for whoever draws it: counts, the means of this epoch so far, the rows of past epochs."""

    epoch: int
    epochs: int
    step: int
    steps: int
    means: dict[str, float]
    images_per_second: float
    seconds_left: float
    history: list[dict[str, Any]]


@component("trainer", "trainer")
class Trainer:
    """How a recipe is run: optimisation, averaging, augmentation, devices.

    epochs: passes over the data. batch: examples per update over all processes; what is left over at the end of an epoch is
    passed over. optimizer, schedule: of the main parameters; the schedule multiplies the learning rate, step by step.
    augment: done to every batch before the recipe sees it. sampler: which examples make a batch
    (`withstand.training.samplers`); None shuffles them all in every epoch. label_smoothing: share s of a label that is
    spread evenly over all K classes, (1 - s) * onehot + s / K (torch's convention), in what is learned from, never in
    attacks. Papers that give 1 - s' to the label and s' / (K - 1) to each other class mean s = s' * K / (K - 1) here.
    averaging: of the weights (`ema`, `swa`); validation and the result then use the average. accumulate: parts into which
    a batch is cut to save memory; batch norm sees the parts. clip_norm: largest global norm of the gradient.
    agc: adaptive clipping, the largest norm of a unit's gradient as a share of its weights' (Brock et al., 2021, arXiv
    2102.06171); the last linear layer is left out.
    patience: stop after so many validations without a better one. validate_every: epochs between validations.
    accelerator, devices, nodes, strategy, precision: as in Lightning Fabric ("cpu", "cuda"; 1; 1; "auto", "ddp", or "fsdp",
    which spreads the weights over the processes; "32-true", "bf16-mixed", "16-mixed"). Processes are started by torchrun or
    Slurm, or by Fabric itself for devices > 1. sync_norm: batch norm over all processes. channels_last: memory layout of
    images and convolutions. compile: a backend of torch.compile ("inductor") for every part of the system; passes of other
    shapes and modes are compiled when they first come.
    checkpoint_seconds: checkpoints are written at the end of every epoch, and within it whenever so much time has gone.

    The same settings, seed and data give the same weights, bit for bit on the CPU, killed and resumed or not.
    """

    epochs: int = 30
    batch: int = 128
    optimizer: OptimizerField = SGD()
    schedule: ScheduleField = Steps()
    augment: AugmentationsField = ()
    sampler: SamplerField = None
    label_smoothing: float = 0.0
    averaging: AveragingField = None
    accumulate: int = 1
    clip_norm: float | None = None
    agc: float | None = None
    patience: int | None = None
    validate_every: int = 1
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: str = "32-true"
    sync_norm: bool = False
    channels_last: bool = False
    compile: str | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate", "validate_every", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise bad(name, getattr(self, name), "a whole number >= 1")
        if not 0 <= self.label_smoothing <= 1:
            raise bad("label_smoothing", self.label_smoothing, "a share in [0, 1]")
        if self.compile is not None:
            from torch._dynamo import list_backends

            if self.compile not in list_backends(None):  # type: ignore[arg-type]
                raise unknown("backend of torch.compile", self.compile, list_backends(None))  # type: ignore[arg-type]
        for name in ("clip_norm", "agc", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise bad(name, value, "a number > 0, or None")

    def fit(
        self,
        recipe: Any,
        model: nn.Module,
        data: Dataset,
        validation: Dataset | None = None,
        attack: Any = None,
        out: str | Path | None = None,
        seed: int = 0,
        progress: Callable[[Moment], None] | None = None,
        loggers: Sequence[Any] = (),
    ) -> Fitted:
        """Train a copy of the model by the recipe; the model itself stays as it is.

        validation: examples, apart from the training's, by which the best epoch is chosen: by the accuracy under `attack`
        where one is given, else by the clean accuracy. out: a folder for checkpoints, `history.csv`, `best.safetensors`,
        `last.safetensors` and `training.json` (the settings, and at the end what came of them); with the same settings
        again, the training goes on from there.
        loggers: called as logger(step, row) after every epoch; see `withstand.training.logs`.

        Raises:
            BadInput: settings that do not fit the data or the recipe; a folder that holds another training (saying what
            differs). Diverged: a loss that is NaN or infinite. Unavailable: a full disk, or too little memory.
        """
        from withstand.training.loop import Loop

        recipe, attack = coerce("recipe")(recipe), coerce("attack")(attack)
        loop = Loop(self, recipe, model, data, validation, attack, out, seed, progress, loggers)
        return loop.run()
