"""Where a training runs: devices, processes, and what they share."""

import inspect
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.errors import bad
from withstand.models.layers import BranchNorm
from withstand.training.trainer import Trainer

ALL = "all"
"""The one branch of a batch norm that is synchronised."""


def launched(trainer: Trainer, find_unused_parameters: bool) -> Any:
    """Fabric for the trainer's settings, its processes started. Raises: BadInput for settings that it does not offer."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    try:
        strategy: Any = trainer.strategy
        if strategy == "ddp":
            # buffers are each process's own: several passes may stand between two updates
            known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
            options: dict[str, Any] = {
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
            }
            strategy = DDPStrategy(find_unused_parameters=find_unused_parameters, **options)
        elif strategy == "fsdp":
            from withstand.training.sharding import shard

            world = trainer.devices * trainer.nodes
            strategy = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
        fabric = Fabric(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.nodes,
            strategy=strategy,
            precision=trainer.precision,  # type: ignore[arg-type]
        )
    except (ValueError, RuntimeError) as error:
        settings = f"{trainer.accelerator}, {trainer.devices} devices, {trainer.strategy}, {trainer.precision}"
        raise bad(
            "accelerator, devices, strategy, precision", settings, "what Lightning Fabric offers", str(error)
        ) from None
    fabric.launch()
    return fabric


def synchronise(system: nn.Module) -> None:
    """Let batch norm take its statistics over all processes, in place; torch's own form does so on GPUs only."""
    for part in list(system.modules()):
        if isinstance(part, BranchNorm):
            part.sync = all(isinstance(m, _BatchNorm) for m in part.branches.values())
            continue
        for name, child in list(part._modules.items()):
            if isinstance(child, _BatchNorm) and not isinstance(part, nn.ModuleDict):
                part._modules[name] = BranchNorm(child, [ALL], sync=True)


def memory_advice(trainer: Trainer, error: BaseException) -> str:
    """What to do about too little memory."""
    return (
        f"the device ran out of memory ({str(error).splitlines()[0]}). Cut the batch into parts "
        f"(accumulate={2 * trainer.accumulate}), take a smaller batch than {trainer.batch}, or use "
        'precision="bf16-mixed". The training goes on from its last checkpoint only with the settings it began with; '
        "choose a new folder for others."
    )
