"""Against the package `imagecorruptions` on the same photographs, for the kinds it can still run."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from withstand.corruptions import corrupt

pytestmark = pytest.mark.peers

EXACT = {"contrast": 1, "pixelate": 0, "jpeg_compression": 0}
WITHIN_A_LEVEL = ("defocus_blur", "zoom_blur", "brightness", "saturate")
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "snow", "spatter")


@pytest.fixture(scope="module")
def peer() -> Callable[[torch.Tensor, str, int], torch.Tensor]:
    imagecorruptions = pytest.importorskip("imagecorruptions", exc_type=ImportError)

    def run(images: torch.Tensor, name: str, severity: int) -> torch.Tensor:
        np.random.seed(0)  # noqa: NPY002  (the peer draws from the global generator)
        arrays = images.permute(0, 2, 3, 1).numpy()
        made = [imagecorruptions.corrupt(a, corruption_name=name, severity=severity) for a in arrays]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)

    return run


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", [*EXACT, *WITHIN_A_LEVEL])
def test_kinds_without_draws_agree_to_a_level(peer, photos, name, severity):
    difference = (corrupt(photos, name, severity).float() - peer(photos, name, severity).float()).abs()
    assert difference.max() <= EXACT.get(name, 1)


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", RANDOM)
def test_kinds_with_draws_agree_in_their_moments(peer, photos, name, severity):
    x = photos.repeat(4, 1, 1, 1)
    ours, theirs = corrupt(x, name, severity).float(), peer(x, name, severity).float()
    damage = (ours - x.float()).abs().mean().item()
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=0.02)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
    assert damage == pytest.approx((theirs - x.float()).abs().mean().item(), rel=0.15)
