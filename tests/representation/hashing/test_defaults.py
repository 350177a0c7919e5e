"""Settings that nobody gave are those of the papers and their official code."""

import pytest

from withstand.attacks.pgd import PGD
from withstand.registry import parse
from withstand.representation.hashing.recipe import BITS
from withstand.threats import Linf
from withstand.training import Trainer


def test_cgat_and_atrdh_train_as_the_official_code() -> None:
    for name in ("cgat", "atrdh"):
        recipe = parse(name, "recipe")
        assert recipe.attack == PGD(Linf(8 / 255), steps=7, step=(2 / 255) / (8 / 255), random_start=True)
        made = Trainer(**recipe.defaults)
        assert (made.batch, made.epochs) == (32, 30)
        assert (made.optimizer.lr, made.optimizer.momentum, made.optimizer.weight_decay) == (0.01, 0.9, 5e-4)
        assert [round(made.schedule(p), 9) for p in (0.0, 0.499, 0.5, 0.749, 0.75)] == [1, 1, 0.1, 0.1, 0.01]
    assert parse("cgat", "recipe").lam == 1
    assert parse("cgat", "recipe").weights == "jaccard"
    assert BITS == 32


def test_hashing_models_train_as_the_official_code() -> None:
    made = Trainer(**parse("hashing", "recipe").defaults)
    assert (made.batch, made.epochs) == (64, 100)
    assert (made.optimizer.lr, made.optimizer.momentum, made.optimizer.weight_decay) == (0.01, 0.9, 5e-4)
    assert [round(made.schedule(p), 9) for p in (0.0, 0.33, 0.34, 0.66, 0.67)] == [1, 1, 0.1, 0.1, 0.01]


def test_attacks_take_a_hundred_steps_of_one_level_of_eight() -> None:
    for name in ("cga", "hag", "dhta", "p2p", "tha"):
        attack = parse(name, "attack")
        assert (attack.threat, attack.steps, attack.step * 8) == (Linf(8 / 255), 100, 1)
        assert attack.random_start == (name in ("cga", "hag"))
    assert (parse("dhta", "attack").anchors, parse("p2p", "attack").anchors) == (9, 1)
    assert (parse("hag", "attack").t, parse("hag", "attack").anneal) == (0.5, True)
    sdha = parse("sdha", "attack")
    assert (sdha.threat, sdha.steps, sdha.lr, sdha.z, sdha.weight) == (Linf(8 / 255), 100, 0.01, 0.5, 25)


def test_prototypes_are_learned_as_in_the_official_code() -> None:
    recipe = parse("prototypes", "recipe")
    assert (recipe.hidden, recipe.feature, recipe.quantisation) == (4096, 512, 1e-4)
    made = Trainer(**recipe.defaults)
    assert (made.optimizer.lr, made.optimizer.betas) == (1e-4, (0.5, 0.999))
    assert (made.batch, made.epochs) == (32, 100)


def test_prosgan_learns_as_in_the_official_code() -> None:
    recipe = parse("prosgan_generator", "recipe")
    assert (recipe.weights, recipe.every, recipe.quantisation) == ((50, 5, 1), 3, 1e-4)
    assert (recipe.ngf, recipe.blocks, recipe.ndf, recipe.hidden, recipe.feature) == (64, 6, 64, 4096, 512)
    made = Trainer(**recipe.defaults)
    assert (made.optimizer.lr, made.optimizer.betas, made.batch) == (1e-4, (0.5, 0.999), 24)
    first = round(recipe.first * made.epochs)
    assert (first, made.epochs - first) == (10, 100)
    rates = [made.schedule((first + epoch) / made.epochs) for epoch in (0, 50, 75, 100)]
    assert [round(rate, 9) for rate in rates] == [1, 1, 0.5, 0]
    assert first * (5000 // made.batch) * recipe.repeats == pytest.approx(30000, rel=0.05)


def test_losses_have_the_official_constants() -> None:
    for text in ("dpsh(eta=0.001)", "hashnet(alpha=0.1)", "dch(gamma=20.0, weight=0.1)", "csq(weight=0.0001)",
                 "greedyhash(weight=0.1)", "dsdh(mu=1.0, nu=1.0, eta=55.0, rounds=10)"):  # fmt: skip
        assert parse(text, "hashing_loss") == parse(text.partition("(")[0], "hashing_loss")
