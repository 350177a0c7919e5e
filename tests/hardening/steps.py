"""One step of a recipe by hand."""

import torch

from tests.hardening.conftest import cnn, images
from withstand.random import Rows
from withstand.training.recipe import Step

N = 12


def step_of(n=N, **changes):
    return Step(**{"step": 0, "steps": 10, "epoch": 0, "epochs": 2, "seed": 0, "rows": Rows.count(0, n)} | changes)


def batch_of(n=N):
    return images().batch(range(n))


def system_of(recipe, norm=True, dropout=False):
    model = cnn(norm=norm)
    if not dropout:
        model[8].p = 0.0
    return recipe.setup(model, images(), Rows.count(0, 24)).train()


def crafted(recipe, norm=True, step=None):
    """A system in train mode, a step and a crafted batch."""
    system, step = system_of(recipe, norm), step or step_of()
    return system, step, recipe.craft(system, batch_of(), step)


def gradients(system, loss):
    system.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in system.parameters() if p.grad is not None])


def by_hand(recipe, system, optimizer, batch, step, after=lambda: None):
    """What the trainer does with the updates of a step."""
    for update in recipe.updates(system, batch, step):
        optimizer.zero_grad()
        update.loss().backward()
        if update.before_step is not None:
            update.before_step()
        after()
        optimizer.step()


def copied(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}
