"""Vision transformers for small images.

Reference: Touvron, Cord, Douze, Massa, Sablayrolles, Jegou, "Training data-efficient image transformers & distillation
through attention", ICML 2021, arXiv:2012.12877 (the widths Ti and S).
"""

from timm.models.vision_transformer import VisionTransformer


def vit(
    dim: int,
    heads: int,
    depth: int = 12,
    side: int = 32,
    patch: int = 4,
    drop: float = 0.0,
    drop_path: float = 0.0,
    channels: int = 3,
    classes: int = 10,
) -> VisionTransformer:
    """timm's VisionTransformer for [N, channels, side, side], in patches of patch x patch pixels.

    drop: rate of dropout of position embeddings and projections; drop_path: rate of stochastic depth of the last block,
    rising linearly from 0.
    """
    return VisionTransformer(
        img_size=side,
        patch_size=patch,
        in_chans=channels,
        num_classes=classes,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        pos_drop_rate=drop,
        proj_drop_rate=drop,
        drop_path_rate=drop_path,
    )
