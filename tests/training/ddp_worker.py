"""One process of a distributed training; started by torchrun from test_distributed.py."""

import json
import shutil
import sys
from pathlib import Path

import torch

from tests.hardening.conftest import cnn, images
from tests.training.conftest import Points, net
from withstand.hardening.awp import AWP
from withstand.hardening.pgd_at import PGDAT
from withstand.hardening.sam import SAM
from withstand.hardening.standard import Standard
from withstand.registry import parse
from withstand.training import SGD, Trainer

SETTINGS = {"epochs": 2, "batch": 16, "optimizer": SGD(0.1), "schedule": "cosine", "accelerator": "cpu"}
BASE = PGDAT(attack="pgd(l2(0.3), steps=3)")
ATTACK = "pgd(l2(0.3), steps=3)"
RECIPES = {
    "standard": Standard(),
    "pgd_at": BASE,
    "awp": AWP(BASE, gamma=0.1),
    "sam": SAM(BASE, rho=0.1),
    "advprop": parse(f"advprop(attack={ATTACK})", "recipe"),
    "dial": parse(f"dial(attack={ATTACK})", "recipe"),
    "ask_def": parse(f"ask_def(attack={ATTACK}, ask_attack={ATTACK}, per_class=3)", "recipe"),
    "maxmatch": parse("maxmatch(add_noise(0.3), labels=8, weak=add_noise(0.05), tau=0.6)", "recipe"),
    "ctaugment": parse("fixmatch([ctaugment(decay=0.5)], weak=add_noise(0.05), tau=0.4)", "recipe"),
    "hashing": parse("hashing(loss=dpsh, bits=4)", "recipe"),
    "cgat": parse("cgat(loss=dph, bits=4, attack=pgd(l2(0.3), steps=3))", "recipe"),
    "faat": parse(f"faat(attack={ATTACK}, discriminator=mlp)", "recipe"),
}
APART = {False: ("advprop", "dial"), True: ("ask_def", "ctaugment")}
RUNS = [(name, sync) for name in RECIPES for sync in (False, True) if name not in APART[sync]]
"""Each recipe without and with batch norm, which is synchronised; two have batch norm of their own: branches, a head. In one
every process passes the same references on, so that the variance of a batch is estimated from fewer different examples."""


SHARDED = {
    "standard": {"averaging": "ema(0.9)", "clip_norm": 0.5, "sync_norm": True},
    "pgd_at": {"optimizer": "adam(0.01)"},
}


def train(recipe: str, out: str | None = None, devices: int = 1, strategy: str = "ddp", **settings):
    trainer = Trainer(
        **{**RECIPES[recipe].defaults, **SETTINGS, **settings},
        devices=devices,
        strategy=strategy if devices > 1 else "auto",
    )
    if recipe == "ctaugment":
        pictures = cnn(norm=False)
        pictures[-2].p = 0.0  # dropout
        return trainer.fit(RECIPES[recipe], pictures, images(48), images(48), out=out)
    model = net(norm=settings.get("sync_norm", False))
    points = Points()
    return trainer.fit(RECIPES[recipe], model, points, points, out=out)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {}
    for name, sync in RUNS:
        fitted = train(name, str(folder / f"{name}{sync}"), devices=2, sync_norm=sync)
        rank = torch.distributed.get_rank()
        found[f"{name} {sync}"] = [(row[RECIPES[name].selects_on[0]], row["loss"]) for row in fitted.history]
        torch.save(fitted.last.state_dict(), folder / f"{name}{sync}.{rank}.pt")
    for name, settings in SHARDED.items():
        out = folder / f"fsdp {name}"
        fitted = train(name, str(out), devices=2, strategy="fsdp", **settings)
        torch.save(fitted.last.state_dict(), folder / f"fsdp {name}.{rank}.pt")
        torch.distributed.barrier()
        if rank == 0:  # as after a kill in the second epoch
            shutil.rmtree(sorted((out / "checkpoints").glob("step-*"))[-1])
        torch.distributed.barrier()
        again = train(name, str(out), devices=2, strategy="fsdp", **settings)
        torch.save(again.last.state_dict(), folder / f"fsdp {name} again.{rank}.pt")
    (folder / f"history.{rank}.json").write_text(json.dumps(found))
