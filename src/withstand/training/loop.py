"""The loop of a training: its state, its steps, and how it comes back after a kill."""

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import BadInput, Diverged, Unavailable, bad
from withstand.files import lock, write_atomic, write_json
from withstand.models.layers import BranchNorm, clip_adaptively, keep_branch
from withstand.models.state import frozen
from withstand.models.target import core
from withstand.models.weights import read_weights
from withstand.protocols import Batch, Dataset, Update
from withstand.random import Rows, derive
from withstand.registry import is_component, live
from withstand.training import checkpoints, sharding
from withstand.training.averaging import Average
from withstand.training.devices import ALL, launched, memory_advice, synchronise
from withstand.training.feed import micro_batches, order, shares
from withstand.training.logs import as_csv
from withstand.training.overfitting import summary
from withstand.training.recipe import Step
from withstand.training.trainer import Fitted, Moment, Trainer


class Advance(nn.Module):
    """What Fabric wraps: a forward pass is the making of one loss, whatever modules it leads through, so that the hooks of
    a distributed strategy see every recipe as a single call."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


class Loop:
    """One training under way; see `Trainer.fit` for the arguments."""

    def __init__(
        self,
        trainer: Trainer,
        recipe: Any,
        model: nn.Module,
        data: Dataset,
        validation: Dataset | None,
        attack: Any,
        out: str | Path | None,
        seed: int,
        progress: Callable[[Moment], None] | None,
        loggers: Sequence[Any],
    ) -> None:
        self.trainer, self.recipe, self.seed = trainer, recipe, seed
        self.data = data = recipe.examples(model, data, derive(seed, "examples"))
        self.validation, self.attack = validation, attack
        self.folder = None if out is None else Path(out)
        self.progress, self.loggers = progress, loggers
        if recipe.may_lose is not None and validation is None:
            mend = "Give some, or let the recipe set no bound."
            raise bad("validation", "none", "examples, since the recipe bounds what accuracy may be lost", mend)
        with _seeded(derive(seed, "setup")):
            self.system = recipe.setup(model, data, Rows.count(derive(seed, "setup"), len(data)))
        if trainer.sync_norm:
            synchronise(self.system)
        self.system.train()
        made = recipe.optimizers(self.system, trainer.optimizer)
        if "main" not in made:
            raise bad("optimizers of the recipe", ", ".join(made) or "none", 'one named "main"')
        self.rates = [group["lr"] for group in made["main"].param_groups]

        # where several optimisers take turns, an update leaves parameters out
        self.fabric = launched(trainer, find_unused_parameters=len(made) > 1)
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        if trainer.channels_last:
            self.system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.system.to(self.fabric.device)
        if trainer.compile is not None:
            for part in self.system.children():
                part.compile(backend=trainer.compile)
        self.sharded = trainer.strategy == "fsdp"
        if self.sharded:
            if not recipe.shards:
                raise bad(
                    "strategy", "fsdp", '"ddp" for this recipe', f"{recipe!r} needs whole gradients of the weights."
                )
            self.mould = copy.deepcopy(self.system)  # what is spread cannot be copied
        self.wrapped = self.fabric.setup_module(Advance(self.system))
        if self.sharded:
            made = recipe.optimizers(self.system, trainer.optimizer)  # of the shards
        self.optimizers = {name: self.fabric.setup_optimizers(o) for name, o in made.items()}

        self.batch = min(trainer.batch, len(data))
        shares(self.batch, self.world, trainer.accumulate)
        self.per_epoch = len(order(data, self.batch, 0, seed, trainer.sampler)) // self.batch
        self.steps = self.per_epoch * trainer.epochs
        self.classes = len(data.classes)
        self.config = self._config(model)
        self.average = None if trainer.averaging is None else Average(trainer.averaging, self.system)

        self.step, self.history = 0, []
        self.best: dict[str, Any] = {"epoch": None, "score": None, "waited": 0}
        self.best_state: dict[str, Tensor] | None = None
        self.sums: dict[str, float] = {}
        self.stopped = ""

    # From the first step to the last ---------------------------------------------------------------------

    def run(self) -> Fitted:
        """All epochs that are left."""
        with ExitStack() as stack:
            if self.folder is not None and self.rank == 0:
                stack.enter_context(_claimed(self.folder))
            self._resume()
            stack.enter_context(torch.random.fork_rng(_cuda(self.fabric.device)))
            if self.recipe.may_lose is not None and self.best["epoch"] is None:
                self._judge_given()
            self.started, self.first, self.saved = time.perf_counter(), self.step, time.perf_counter()
            try:
                while self.step < self.steps and not self.stopped:
                    self._epoch()
            except torch.OutOfMemoryError as error:
                raise Unavailable(memory_advice(self.trainer, error)) from error
            except RuntimeError as error:
                if self.trainer.compile is None or not type(error).__module__.startswith("torch._"):
                    raise
                what = str(error).splitlines()[0]
                raise Unavailable(f"compile: {self.trainer.compile} failed ({what}). Leave it out.") from error
            return self._result()

    def _epoch(self) -> None:
        epoch, first = divmod(self.step, self.per_epoch)
        k = self.trainer.accumulate
        began, at = time.perf_counter(), self.step
        parts: list[Batch] = []
        sampler = self.trainer.sampler
        for part in micro_batches(self.data, epoch, self.seed, self.batch, k, first, self.rank, self.world, sampler):
            parts.append(part)
            if len(parts) < k:
                continue
            self._step(epoch, parts)
            parts = []
            self._show(epoch)
            if self.step % self.per_epoch and time.perf_counter() - self.saved > self.trainer.checkpoint_seconds:
                self._save()
        seconds = time.perf_counter() - began
        self._close(epoch, (self.step - at) * self.batch / max(seconds, 1e-9))

    def _step(self, epoch: int, parts: Sequence[Batch]) -> None:
        """One optimiser step, from all the parts of its batch."""
        self._set_rates()
        for m, batch in enumerate(parts):
            batch = batch.to(self.fabric.device)
            if self.trainer.channels_last and batch.x.dim() == 4:
                batch = replace(batch, x=batch.x.contiguous(memory_format=torch.channels_last))
            torch.manual_seed(derive(self.seed, "step", self.step, m, self.rank) & 0x7FFFFFFF)
            ids = batch.ids if batch.ids is not None else torch.arange(len(batch), device=batch.x.device)
            step = Step(
                step=self.step,
                steps=self.steps,
                epoch=epoch,
                epochs=self.trainer.epochs,
                seed=derive(self.seed, "part", m),
                rows=Rows(derive(self.seed, "epoch", epoch), ids),
                rank=self.rank,
                world=self.world,
                box=self.data.space.box,
                smoothing=self.trainer.label_smoothing,
                averaged=None if self.average is None or self.sharded else partial(self.average.run, self.system),
            )
            for augmentation in self.trainer.augment:
                batch = augmentation(batch, step, self.classes)
            self.system.train()
            try:
                with self.fabric.autocast():
                    batch = self.recipe.craft(self.system, batch, step)
            except BadInput:  # attacks refuse a model without finite outputs, which is not what went wrong
                self._refuse_broken(self.step, batch.x)
                raise
            losses: dict[str, list[float]] = {}
            for update in self.recipe.updates(self.system, batch, step):
                made = losses.setdefault("loss" if update.opt == "main" else f"loss_{update.opt}", [])
                if made and len(parts) > 1:
                    mend = f"{self.recipe!r} makes several updates of a batch, each of which needs all of it."
                    raise bad("accumulate", len(parts), "1 for this recipe", mend)
                made.append(self._update(update, step, m == 0, m == len(parts) - 1, len(parts)))
            for name, made in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + sum(made) / len(made) / len(parts)
            for name, value in step.said.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(value) / len(parts)
        self.step += 1
        if self.average is not None:
            self.average.update(self.system, self.step, self.step / self.steps)

    def _update(self, update: Update, step: Step, first: bool, last: bool, parts: int) -> float:
        optimizer = self.optimizers[update.opt]
        if first:
            optimizer.zero_grad(set_to_none=True)
        with _held_still(update.freeze), self.fabric.no_backward_sync(self.wrapped, enabled=not last):
            loss = self.wrapped(update.loss)
            value = float(loss.detach())
            if not abs(value) < float("inf"):
                raise self._diverged(f"the loss is {value}", step.step + 1)
            self.fabric.backward(loss / parts)
        if update.before_step is not None:
            update.before_step()
        if last:
            if self.trainer.clip_norm is not None or self.trainer.agc is not None:
                # without a bound it still undoes the scaling of half precision, which adaptive clipping must not see
                most = self.trainer.clip_norm or float("inf")
                self.fabric.clip_gradients(self.wrapped, optimizer, max_norm=most, error_if_nonfinite=False)
            if self.trainer.agc is not None:
                clip_adaptively(self._clipped(update.opt), self.trainer.agc)
            optimizer.step()
        return value

    def _clipped(self, opt: str) -> list[Tensor]:
        """The parameters of an optimiser but those of the layer that makes the logits."""
        model = getattr(self.system, "model", self.system)  # other parts of the system have linear layers of their own
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        last = {id(p) for p in linear[-1].parameters()} if linear else set()
        return [p for group in self.optimizers[opt].param_groups for p in group["params"] if id(p) not in last]

    def _set_rates(self) -> None:
        factor = self.trainer.schedule(self.step / self.steps)
        for group, rate in zip(self.optimizers["main"].param_groups, self.rates):
            group["lr"] = rate * factor

    # The end of an epoch ---------------------------------------------------------------------------------

    def _close(self, epoch: int, speed: float) -> None:
        self._refuse_broken(self.step)
        row: dict[str, Any] = {"epoch": epoch + 1, "step": self.step}
        row |= {name: total / self.per_epoch for name, total in self._over_processes(self.sums).items()}
        row["lr"] = self.optimizers["main"].param_groups[0]["lr"]
        row["images_per_second"] = round(speed, 1)
        self.sums = {}
        due = (epoch + 1) % self.trainer.validate_every == 0 or epoch + 1 == self.trainer.epochs
        if self.validation is not None and due:
            self._judge(row)
        self.history.append(row)
        if text := self.recipe.remark(self.history):
            warnings.warn(text, stacklevel=2)
        self._save()
        for logger in self.loggers if self.rank == 0 else ():
            logger(self.step, row)
        self._show(epoch)

    def _judge(self, row: dict[str, Any]) -> None:
        """Validate, and keep the weights or not."""
        model = self.shipped()
        row |= self._validated(model, self.attack)
        most = self.recipe.may_lose
        if most is not None:
            row["accuracy_lost"] = self.best["before"] - row["accuracy"]
            if row["accuracy_lost"] <= most + 1e-9:
                self._keep(model, row["epoch"], row["accuracy"])
            else:
                self.stopped = f"the accuracy fell by {row['accuracy_lost']:.3f}, more than {most:g}"
                if self.best["epoch"] == 0:
                    mend = "No epoch held the accuracy, and the model is as it was given: lower the weight or the rate."
                    warnings.warn(f"{self.stopped}. {mend}", stacklevel=2)
            return
        if self.recipe.selects_on is None:
            return
        score = row[self.recipe.selects_on[self.attack is not None]]
        if self.best["score"] is None or score > self.best["score"]:
            self._keep(model, row["epoch"], score)
        else:
            self.best["waited"] += 1
            if self.trainer.patience is not None and self.best["waited"] >= self.trainer.patience:
                self.stopped = f"no better validation for {self.best['waited']} validations"

    def _judge_given(self) -> None:
        """The accuracy that must not be lost, before the first step; the model as given counts as epoch 0."""
        model = self.shipped()
        self.best["before"] = self._validated(model, None)["accuracy"]
        self._keep(model, 0, self.best["before"])

    def _keep(self, model: nn.Module, epoch: int, score: float) -> None:
        self.best |= {"epoch": epoch, "score": score, "waited": 0}
        self.best_state = {k: v.detach().cpu().clone() for k, v in core(model).state_dict().items()}
        if self.folder is not None and self.rank == 0:
            checkpoints.save_weights(self.folder / "best.safetensors", core(model))

    def _validated(self, model: nn.Module, attack: Any) -> dict[str, float]:
        assert self.validation is not None
        return self.recipe.validate(
            model,
            self.validation,
            attack,
            self.fabric.device,
            derive(self.seed, "validation"),
            self.rank,
            self.world,
            lambda counts: self.fabric.all_reduce(counts, reduce_op="sum"),
        )

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        if self.world == 1:
            return sums
        mean = self.fabric.all_reduce(torch.tensor(list(sums.values()), dtype=torch.float64), reduce_op="mean")
        return dict(zip(sums, mean.tolist()))

    def shipped(self) -> nn.Module:
        """The model as it would be shipped now, a copy in eval mode with averaged weights where there are any."""
        with nullcontext() if self.average is None else self.average.worn_by(self.system):
            if self.sharded:
                self.mould.load_state_dict(sharding.whole(self.system))
            system = copy.deepcopy(self.mould if self.sharded else self.system)
        model = self.recipe.finish(system)
        if any(isinstance(m, BranchNorm) for m in model.modules()):  # those of sync_norm
            model = keep_branch(model, ALL)
        return model.eval().requires_grad_(True)

    def _result(self) -> Fitted:
        last = self.shipped()
        if self.folder is not None and self.rank == 0:
            checkpoints.save_weights(self.folder / "last.safetensors", core(last))
            ended = {"best_epoch": self.best["epoch"], "epochs": len(self.history), "stopped": self.stopped}
            write_json(self.folder / "training.json", self.config | {"result": ended | summary(self.history)})
        best = last
        if self.best_state is not None:
            best = copy.deepcopy(last)
            core(best).load_state_dict(self.best_state)
        return Fitted(best, last, self.history, self.best["epoch"], self.step, self.stopped, self.folder, self.rank)

    def _show(self, epoch: int) -> None:
        if self.progress is None or self.rank:
            return
        done = max(self.step % self.per_epoch, 1)
        pace = (time.perf_counter() - self.started) / max(self.step - self.first, 1)
        self.progress(
            Moment(
                epoch=epoch + 1,
                epochs=self.trainer.epochs,
                step=self.step,
                steps=self.steps,
                means={name: total / done for name, total in self.sums.items()},
                images_per_second=self.batch / max(pace, 1e-9),
                seconds_left=pace * (self.steps - self.step),
                history=self.history,
            )
        )

    # Coming back -----------------------------------------------------------------------------------------

    def _config(self, model: nn.Module) -> dict[str, Any]:
        # where and how it runs changes rounding at most, and how often it is saved not even that
        silent = ("accelerator", "devices", "nodes", "strategy", "checkpoint_seconds")
        settings = {
            f.name: repr(value) if is_component(value := getattr(self.trainer, f.name)) else value
            for f in fields(self.trainer)
            if f.name not in silent
        }
        settings["augment"] = repr(self.trainer.augment)
        return {
            "withstand": metadata.version("withstand"),
            "recipe": repr(self.recipe),
            "trainer": settings,
            "model": live(model).strip("'"),
            "data": {"name": self.data.name, "examples": len(self.data), "fingerprint": self.data.fingerprint()},
            "validation": None
            if self.validation is None
            else {"examples": len(self.validation), "fingerprint": self.validation.fingerprint()},
            "attack": repr(self.attack),
            "seed": self.seed,
            "processes": self.world,
        }

    def _resume(self) -> None:
        if self.folder is None:
            return
        path = self.folder / "training.json"
        if path.is_file():
            old = {k: v for k, v in json.loads(path.read_text()).items() if k != "result"}
            differs = checkpoints.differences(old, json.loads(json.dumps(self.config)))
            if differs:
                raise bad(
                    "out",
                    f"{self.folder}, which holds another training ({'; '.join(differs)})",
                    "a new folder, or the settings of the training in it",
                )
        state = checkpoints.load(self.folder / "checkpoints", lambda text: warnings.warn(text, stacklevel=2))
        self.fabric.barrier()
        if state is None:
            return
        if self.sharded:
            sharding.put(self.system, state["system"])
            for name, optimizer in self.optimizers.items():
                sharding.put(self.system, state["optimizers"][name], optimizer)
        else:
            self.system.load_state_dict(checkpoints.to_device(state["system"], self.fabric.device))
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        if self.average is not None:
            self.average.put(checkpoints.to_device(state["average"], self.fabric.device), state["average_count"])
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.sums, self.stopped = state["sums"], state["stopped"]
        if self.best["epoch"] is not None:
            self.best_state = read_weights(self.folder / "best.safetensors")

    def _save(self) -> None:
        self.saved = time.perf_counter()
        if self.folder is None or (self.rank and not self.sharded):
            return
        self._refuse_broken(self.step)
        state = {
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "sums": self.sums,
            "stopped": self.stopped,
        }
        if self.sharded:
            state["system"] = sharding.whole(self.system)
            state["optimizers"] = {n: sharding.whole(self.system, o) for n, o in self.optimizers.items()}
        else:
            state["system"] = self.system.state_dict()
            state["optimizers"] = {name: o.state_dict() for name, o in self.optimizers.items()}
        if self.average is not None:
            state |= {"average": sharding.joined(self.average.state), "average_count": self.average.count}
        if self.rank:
            return
        if not (self.folder / "training.json").is_file():
            write_json(self.folder / "training.json", self.config)
        checkpoints.save(self.folder / "checkpoints", self.step, state)
        write_atomic(self.folder / "history.csv", as_csv(self.history))

    def _refuse_broken(self, step: int, x: Tensor | None = None) -> None:
        """Stop before weights that are no numbers, or make none of x, are judged or saved."""
        broken = [n for n, p in self.system.named_parameters() if not bool(torch.isfinite(sharding.own(p)).all())]
        if not broken and x is not None:
            with torch.no_grad(), frozen(self.system):
                broken = [] if bool(torch.isfinite(self.system(x)).all()) else ["the output"]
        if broken:
            raise self._diverged(f"{broken[0]} holds NaN or infinite values", step)

    def _diverged(self, what: str, step: int) -> Diverged:
        return Diverged(
            f"{what} at step {step} of {self.steps} (epoch {(max(step, 1) - 1) // self.per_epoch + 1}). The training stops; "
            f"{self._what_stays()} Lower the learning rate, or clip the gradient (clip_norm=1.0)."
        )

    def _what_stays(self) -> str:
        return "nothing was saved." if self.folder is None else f"the last good checkpoint stays in {self.folder}."


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """The folder's lock; a training that fails before it has written anything leaves no folder behind."""
    new = not folder.exists()
    with lock(folder):
        try:
            yield
        except BaseException:
            if [p.name for p in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                if new:
                    folder.rmdir()
            raise


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed & 0x7FFFFFFF)
        yield


@contextmanager
def _held_still(parts: Sequence[nn.Module]) -> Iterator[None]:
    held = [p for part in parts for p in part.parameters() if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


def _cuda(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
