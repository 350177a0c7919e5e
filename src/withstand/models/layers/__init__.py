"""Layers that hardening recipes put into a model, and the contexts that steer them."""

from withstand.models.layers.branch_norm import BranchNorm as BranchNorm
from withstand.models.layers.branch_norm import add_branches as add_branches
from withstand.models.layers.branch_norm import branch_parameters as branch_parameters
from withstand.models.layers.branch_norm import frozen_statistics as frozen_statistics
from withstand.models.layers.branch_norm import keep_branch as keep_branch
from withstand.models.layers.branch_norm import route as route
from withstand.models.layers.gradient_reversal import GradientReversal as GradientReversal
from withstand.models.layers.gradient_reversal import reverse_gradient as reverse_gradient
from withstand.models.layers.matched_masks import matched_masks as matched_masks
from withstand.models.layers.weight_standardised import WSConv2d as WSConv2d
from withstand.models.layers.weight_standardised import clip_adaptively as clip_adaptively
