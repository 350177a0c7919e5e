"""What a saliency map is worth, by published measures; maps are gradients [N, C, H, W] of one logit by the image."""

from collections.abc import Callable

import torch
from torch import Tensor


def magnitude(gradient: Tensor) -> Tensor:
    """How much each pixel matters, [N, H, W]: max over channels of |g|.

    Reference: Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks: Visualising Image Classification Models
    and Saliency Maps", 2013, arXiv 1312.6034.
    """
    return gradient.abs().amax(1)


def gini(saliency: Tensor) -> Tensor:
    """How concentrated each map [N, ...] >= 0 is: 0 where all values are equal, towards 1 where few hold everything; [N].

    1 - 2 sum_k v_(k) / |v|_1 (d - k + 1/2) / d over the d values in ascending order; a map of zeros gets 0.

    Reference: Chalasani, Chen, Chowdhury, Jha, Wu, "Concise Explanations of Neural Networks using Adversarial Training",
    2020, arXiv 1810.06583 (after Hurley, Rickard, 2009).
    """
    v = saliency.flatten(1).double().sort(1).values
    d, total = v.shape[1], v.sum(1)
    weights = (d - torch.arange(1, d + 1, device=v.device, dtype=v.dtype) + 0.5) / d
    return torch.where(total > 0, 1 - 2 * (v * weights).sum(1) / total.clamp_min(1e-300), 0.0)


def alignment(x: Tensor, gradient: Tensor) -> Tensor:
    """|<x, g>| / |g|_2, [N], in units of the image: how far the gradient points along the image itself; 0 without one.

    Reference: Etmann, Lunz, Maass, Schoenlieb, "On the Connection Between Adversarial Robustness and Saliency Map
    Interpretability", 2019, arXiv 1905.04172, definition 4.
    """
    x, g = x.flatten(1).double(), gradient.flatten(1).double()
    length = g.norm(dim=1)
    return torch.where(length > 0, (x * g).sum(1).abs() / length.clamp_min(1e-300), 0.0)


def exchanged(score: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, saliency: Tensor, steps: int) -> Tensor:
    """The area under the score [N] while pixels of x are exchanged for those of `other`, the most salient first, [N].

    The score is taken with shares 0, 1 / steps, ..., 1 of the pixels exchanged; trapezoids. Deletion: from the image to
    one without content, a low area is good. Insertion: from a blurred image to the image, a high one is.

    Reference: Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", 2018, arXiv
    1806.07421, section 4.
    """
    flat = saliency.flatten(1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(1).view(len(x), 1, *x.shape[2:])
    scores = [score(torch.where(rank < round(k / steps * flat.shape[1]), other, x)) for k in range(steps + 1)]
    return torch.trapezoid(torch.stack(scores, 1), dx=1 / steps, dim=1)
