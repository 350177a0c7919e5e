"""How busy a picture is, and making a background busier or plainer by its spectrum."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from withstand.errors import bad

_KNEE = 0.05  # cycles per pixel from which on frequencies are changed noticeably
STRONGEST = 400.0  # of complexity asked for; beyond it, frequencies of single precision overflow before long
_SCALE = 40.0  # lambda of the paper, -20 to 20, becomes an exponent of -0.5 to 0.5


def complexity(image: Tensor) -> float:
    """Lc(x): the mean over channels and all frequencies of |FFT2(x)|, for x float [C, H, W] in [0, 1].

    A constant image c has c, a single white pixel on black 1, a checkerboard of single pixels 1, white noise of standard
    deviation s about s sqrt(H W) sqrt(pi) / 2. The field calls it complexity; it is the L1 norm of the spectrum.

    Reference: Li et al., "ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing", 2023,
    arXiv 2303.17096.
    """
    width = image.shape[-1]
    half = torch.fft.rfft2(image.detach().float()).abs()
    twice = half[..., 1 : (width + 1) // 2].sum(dtype=torch.float64)  # rfft2 leaves out the mirrored columns
    return float((half.sum(dtype=torch.float64) + twice) / image.numel())


def reshape_spectrum(scene: Tensor, exponent: float) -> Tensor:
    """The inverse transform of FFT2(scene) (1 + f / 0.05)^exponent, not clipped; f: radial frequency in cycles per pixel.

    scene: float [C, H, W]. The mean colour stays; `complexity` of what returns grows strictly with the exponent wherever
    the scene is not constant. Exponent 0 returns the scene itself.
    """
    if exponent == 0:
        return scene
    height, width = scene.shape[-2:]
    f = torch.hypot(
        torch.fft.fftfreq(height, device=scene.device)[:, None], torch.fft.rfftfreq(width, device=scene.device)
    )
    return torch.fft.irfft2(torch.fft.rfft2(scene) * (1 + f / _KNEE) ** exponent, s=(height, width))


@dataclass(frozen=True)
class Spectral:
    """Paints backgrounds without any weights: high frequencies are raised or lowered by `reshape_spectrum`.

    The exponent is complexity / 40, so that the paper's -20 and 20 about halve and double `complexity` of a photograph.
    """

    def paint(
        self,
        scene: Tensor,
        image: Tensor,
        mask: Tensor,
        complexity: float,
        generator: Generator,
        label: int | None = None,
    ) -> Tensor:
        """See `Painter`; deterministic, so that the generator is not used."""
        if not -STRONGEST <= complexity <= STRONGEST:  # NaN is neither
            raise bad("complexity", complexity, f"{-STRONGEST:g} to {STRONGEST:g}, e.g. -20 (plainer) or 20 (busier)")
        return scene if complexity == 0 else reshape_spectrum(scene, complexity / _SCALE).clamp(0, 1)
