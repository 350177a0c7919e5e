"""Layers that hardening recipes put into a model, and the contexts that steer them."""

from withstand.models.layers.branch_norm import BranchNorm as BranchNorm
from withstand.models.layers.branch_norm import add_branches as add_branches
from withstand.models.layers.branch_norm import branch_parameters as branch_parameters
from withstand.models.layers.branch_norm import frozen_statistics as frozen_statistics
from withstand.models.layers.branch_norm import keep_branch as keep_branch
from withstand.models.layers.branch_norm import route as route
