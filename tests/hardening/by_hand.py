"""A step of a recipe without the trainer."""

import torch
from torch import nn

from tests.hardening.conftest import cnn, images
from withstand.random import Rows
from withstand.training.recipe import Step


def plain(norm=True):
    """The network without dropout, so that passes can be compared."""
    model = cnn(norm=norm)
    model[8] = nn.Identity()
    return model


def step_at(step=3, steps=10, n=24, seed=0, **more):
    return Step(step=step, steps=steps, epoch=step, epochs=steps, seed=seed, rows=Rows.count(seed, n), **more)


def ready(recipe, model=None, n=24, data=None, dtype=torch.float64, **at):
    """The system in train mode, the crafted batch, the step."""
    data = images(n) if data is None else data
    system = recipe.setup(cnn() if model is None else model, data, Rows.count(0, n)).to(dtype).train()
    step, batch = step_at(n=n, **at), data.batch(range(n))
    batch.x = batch.x.to(dtype)
    return system, recipe.craft(system, batch, step), step


def gradients(loss, module):
    """Gradients by the parameters of a module, zeros where there is none."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]
