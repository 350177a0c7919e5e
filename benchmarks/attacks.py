"""PGD, APGD and AutoAttack beside a bare loop and other libraries, as ratios of time in one run.

Each contestant does the same steps from the same images, on the same network as a user loads it. Rounds alternate
between contestants, and each is judged by its median round, so that a busy machine slows all alike; processor time is
recorded beside wall time. The bare loop is the forward pass and the input gradient, nothing else.

    WITHSTAND_DATA=... python benchmarks/attacks.py [--quick]
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pretrained
import torch
from torch import Tensor, nn

import withstand as ws
from withstand.files import write_json

RESULTS = Path(__file__).parent / "results" / "attacks.json"
EPS = 2 / 255
Work = Callable[[], Any]


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Run all groups and write `out`. quick: 50 images, few steps and rounds, the small network only."""
    warnings.filterwarnings("ignore")
    n, steps, rounds = (50, 4, 2) if quick else (200, 20, 7)
    x, y = pretrained.images(n)
    groups = {}
    for name in ("cifar10_cnn_a_adv2",) if quick else ("cifar10_cnn_a_adv2", "cifar10_resnet20"):
        model = pretrained.network(name).requires_grad_(True)
        some = slice(None) if "cnn" in name else slice(0, 50)
        few = rounds if "cnn" in name else min(rounds, 3)
        groups[f"pgd on {name}"] = race(pgd(model, x[some], y[some], steps), few, steps)
        groups[f"apgd on {name}"] = race(apgd(model, x[some], y[some], steps), few, steps)
    model, few = pretrained.network("cifar10_cnn_a_adv2").requires_grad_(True), slice(0, 10 if quick else 50)
    groups["autoattack, equal steps"] = race(autoattack(model, x[few], y[few], quick), 1 if quick else 3, None)
    found = {
        "one_more_step": {
            name: one_more_step(pretrained.network(name), x[:some], y[:some], rounds)
            for name, some in list({"cifar10_cnn_a_adv2": n, "cifar10_resnet20": 50}.items())[: 1 if quick else 2]
        },
        "eps": EPS,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "groups": groups,
    }
    write_json(out, found)
    return found


def one_more_step(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, float]:
    """What a further PGD step costs beside a bare pass: (time of 40 steps - time of 10) / time of 30 bare passes.

    What is done once, however many steps follow (checks of the input, sealing the result), is left out here and part of
    the other groups.
    """
    few, many = (
        ws.attacks.PGD(ws.Linf(EPS), steps=k, step=0.25, random_start=False, keep="last", active=False)
        for k in (10, 40)
    )
    works: list[Work] = [
        lambda: [pretrained.one_pass(model, x, y) for _ in range(30)],
        lambda: few(model, x, y),
        lambda: many(model, x, y),
    ]
    ratios = []
    for _ in range(rounds + 1):
        times = []
        for work in works:
            start = time.perf_counter(), time.process_time()
            work()
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        ratios.append([(times[2][i] - times[1][i]) / times[0][i] for i in (0, 1)])
    wall, processor = (statistics.median(r[i] for r in ratios[1:]) for i in (0, 1))
    return {"ratio": round(wall, 3), "ratio_of_processor_time": round(processor, 3)}


def pgd(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Work | str]:
    """PGD from the clean point in every library; withstand as recipes use it, and with its best point kept."""
    a = ws.attacks.PGD(ws.Linf(EPS), steps=steps, step=0.25, random_start=False)
    last = ws.attacks.PGD(ws.Linf(EPS), steps=steps, step=0.25, random_start=False, keep="last", active=False)
    best = ws.attacks.PGD(ws.Linf(EPS), steps=steps, step=0.25, random_start=False, active=False)

    def torchattacks() -> Work:
        import torchattacks

        attack = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=steps, random_start=False)
        return lambda: attack(x, y)

    def foolbox() -> Work:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=steps, random_start=False)
        return lambda: attack(wrapped, x, y, epsilons=EPS)

    def art() -> Work:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch

        attack = ProjectedGradientDescentPyTorch(
            _art(model), eps=EPS, eps_step=EPS / 4, max_iter=steps, batch_size=len(x), verbose=False
        )
        images, labels = x.numpy(), y.numpy()
        return lambda: attack.generate(images, labels)

    def adv_lib() -> Work:
        from adv_lib.attacks import pgd_linf

        return lambda: pgd_linf(model, x, y, eps=EPS, steps=steps, random_init=False, absolute_step_size=EPS / 4)

    return {
        "bare loop": lambda: bare(model, x, y, steps),
        "withstand, last iterate": lambda: last(model, x, y),
        "withstand, best point": lambda: best(model, x, y),
        "withstand, active set": lambda: a(model, x, y),
        **_peers(torchattacks=torchattacks, foolbox=foolbox, art=art, adv_lib=adv_lib),
    }


def apgd(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Work | str]:
    """APGD on the cross-entropy, one run."""
    ours = ws.attacks.APGD(ws.Linf(EPS), steps=steps)
    whole = ws.attacks.APGD(ws.Linf(EPS), steps=steps, active=False)

    def original() -> Work:
        from pyautoattack.autopgd_base import APGDAttack

        attack = APGDAttack(model, n_iter=steps, norm="Linf", eps=EPS, seed=0, device="cpu")
        return lambda: attack.perturb(x, y)

    def torchattacks() -> Work:
        import torchattacks

        attack = torchattacks.APGD(model, eps=EPS, steps=steps)
        return lambda: attack(x, y)

    def art() -> Work:
        from art.attacks.evasion import AutoProjectedGradientDescent

        attack = AutoProjectedGradientDescent(
            _art(model), eps=EPS, eps_step=2 * EPS, max_iter=steps, nb_random_init=1, batch_size=len(x),
            loss_type="cross_entropy", verbose=False,
        )  # fmt: skip
        images, labels = x.numpy(), y.numpy()
        return lambda: attack.generate(images, labels)

    def adv_lib() -> Work:
        from adv_lib.attacks import apgd as attack

        return lambda: attack(model, x, y, eps=EPS, norm=float("inf"), n_iter=steps)

    return {
        "bare loop": lambda: bare(model, x, y, steps),
        "withstand, all examples to the end": lambda: whole(model, x, y),
        "withstand": lambda: ours(model, x, y),
        **_peers(original=original, torchattacks=torchattacks, art=art, adv_lib=adv_lib),
    }


def autoattack(model: nn.Module, x: Tensor, y: Tensor, quick: bool) -> dict[str, Work | str]:
    """The same four attacks with the same steps and queries (fewer than the standard ones, to end in minutes).

    ART's AutoAttack is another ensemble (APGD on two losses, DeepFool, Square); it gets the same steps and queries.
    """
    steps, queries = (4, 20) if quick else (20, 500)
    ours = ws.attacks.AutoAttack(ws.Linf(EPS), steps=steps, queries=queries)

    def original() -> Work:
        from pyautoattack import AutoAttack

        logging.getLogger("auto-attack").setLevel(logging.ERROR)
        attack = AutoAttack(model, norm="Linf", eps=EPS, seed=0, device="cpu")
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = steps
            part.n_iter_2, part.n_iter_min = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
            part.size_decr = max(int(0.03 * steps), 1)
        attack.fab.n_iter, attack.square.n_queries = steps, queries
        return lambda: attack.run_standard_evaluation(x, y, batch_size=len(x))[0]

    def torchattacks() -> Work:
        import torchattacks as ta

        attack = ta.MultiAttack(
            [
                ta.APGD(model, eps=EPS, steps=steps),
                ta.APGDT(model, eps=EPS, steps=steps, n_classes=10),
                ta.FAB(model, eps=EPS, steps=steps, multi_targeted=True, n_classes=10),
                ta.Square(model, eps=EPS, n_queries=queries),
            ]
        )
        return lambda: attack(x, y)

    def art() -> Work:
        from art.attacks import evasion

        net, size = _art(model), len(x)
        common = {"eps": EPS, "max_iter": steps, "batch_size": size}
        parts = [
            *[
                evasion.AutoProjectedGradientDescent(
                    net, eps_step=2 * EPS, nb_random_init=1, loss_type=loss, verbose=False, **common
                )
                for loss in ("cross_entropy", "difference_logits_ratio")
            ],
            evasion.DeepFool(net, max_iter=steps, epsilon=1e-3, nb_grads=10, batch_size=size, verbose=False),
            evasion.SquareAttack(net, eps=EPS, max_iter=queries, nb_restarts=1, batch_size=size, verbose=False),
        ]
        attack = evasion.AutoAttack(net, eps=EPS, eps_step=2 * EPS, attacks=parts, batch_size=size)
        images, labels = x.numpy(), y.numpy()
        return lambda: torch.from_numpy(attack.generate(images, labels))

    def accuracy(work: Work) -> Work:
        def run() -> dict[str, float]:
            found = work()
            with torch.no_grad():
                return {"robust_accuracy": float((model(found).argmax(1) == y).float().mean())}

        return run

    peers = _peers(original=original, torchattacks=torchattacks, art=art)
    works: dict[str, Work | str] = {"withstand": lambda: ours(model, x, y), **peers}
    return {k: w if isinstance(w, str) else accuracy(w) for k, w in works.items()}


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        pretrained.one_pass(model, x, y)


def race(works: dict[str, Work | str], rounds: int, steps: int | None) -> dict[str, Any]:
    """Median times of each contestant, and their ratio to the first one; a text stands for why one is missing."""
    found: dict[str, Any] = {k: {"missing": w} for k, w in works.items() if isinstance(w, str)}
    times: dict[str, list[tuple[float, float]]] = {}
    said: dict[str, Any] = {}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            if isinstance(work, str) or name in found:
                continue
            start = time.perf_counter(), time.process_time()
            try:
                said[name] = work()
            except Exception as error:
                found[name] = {"missing": f"fails: {type(error).__name__}: {error}"}
                continue
            if round_ or rounds == 1:  # the first round warms up
                spent = time.perf_counter() - start[0], time.process_time() - start[1]
                times.setdefault(name, []).append(spent)
    wall, processor = ({k: statistics.median(t[i] for t in v) for k, v in times.items()} for i in (0, 1))
    first = next(iter(works))
    for name in times:
        found[name] = {
            "seconds": round(wall[name], 4),
            "ratio": round(wall[name] / wall[first], 3),
            "ratio_of_processor_time": round(processor[name] / processor[first], 3),
            **({"ms_per_step": round(1000 * wall[name] / steps, 3)} if steps else {}),
            **(said[name] if isinstance(said[name], dict) else {}),
        }
    return {name: found[name] for name in works if name in found}


def _peers(**builders: Callable[[], Work]) -> dict[str, Work | str]:
    """The contestants that can be built, with their versions; for the others the reason."""
    packages = {"original": "pyautoattack", "art": "adversarial-robustness-toolbox", "adv_lib": "adv-lib"}
    found: dict[str, Work | str] = {}
    for name, build in builders.items():
        package = packages.get(name, name)
        try:
            found[f"{package} {metadata.version(package)}"] = build()
        except Exception as error:
            found[package] = f"{type(error).__name__}: {error}"
    return found


def _art(model: nn.Module) -> Any:
    from art.estimators.classification import PyTorchClassifier

    loss = nn.CrossEntropyLoss()
    return PyTorchClassifier(model, loss, (3, 32, 32), 10, clip_values=(0, 1), device_type="cpu")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    for group, contestants in main(given.out, given.quick)["groups"].items():
        print(group)
        for contestant, measured in contestants.items():
            print(f"  {contestant:42} {measured}")
