"""Hashing models in folders: trained further, audited, attacked."""

import torch

from tests.hardening.conftest import images
from withstand.hardening.harden import harden
from withstand.models import load_model
from withstand.models.hashing import Hasher

PGD = "pgd(linf(0.1), steps=2)"
QUICK = {"batch": 20, "optimizer": "adam(1e-2)", "accelerator": "cpu"}


def test_a_hashing_model_is_trained_further_from_its_folder(tmp_path) -> None:
    data = images(60)
    first = harden("zoo:digits_bn_cnn", data, "hashing(bits=8)", out=tmp_path / "a", epochs=3, **QUICK)
    begun = load_model(f"artefact:{tmp_path / 'a'}")
    assert begun.task == "hashing"
    x = data.batch(range(6)).x
    with torch.no_grad():
        assert torch.allclose(begun(x), first(x), atol=1e-6)
    second = harden(f"artefact:{tmp_path / 'a'}", data, f"cgat(attack={PGD})", out=tmp_path / "b", epochs=1, **QUICK)
    third = harden(f"artefact:{tmp_path / 'b'}", data, f"atrdh(attack={PGD})", out=tmp_path / "c", epochs=1, **QUICK)
    for made, folder in ((second, "b"), (third, "c")):
        held = load_model(f"artefact:{tmp_path / folder}")
        assert held.task == "hashing"
        assert isinstance(held.module, Hasher)
        assert held.module.bits == 8
        with torch.no_grad():
            assert torch.allclose(held(x), made(x), atol=1e-6)
    with torch.no_grad():
        assert not torch.allclose(second(x), first(x), atol=1e-3)
