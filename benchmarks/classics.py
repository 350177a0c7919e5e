"""DeepFool, Carlini-Wagner, JSMA and Boundary beside foolbox and torchattacks: success, mean distance, time, on one
network for scikit-learn's digits.

    python benchmarks/classics.py [--quick] [--out FILE]

Success is judged on the returned images in one pass. Distances are means over the examples that both sides break, in the
norm of the attack; JSMA counts changed values and aims at the class after the label. torchattacks lets JSMA change 2
ceil(gamma d / 2) values, which is gamma d at the share taken here.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import withstand as ws
from withstand.files import write_json
from withstand.models.zoo.small import small_cnn
from withstand.objectives import TargetedMargin
from withstand.threats import L0, L2, Linf
from withstand.training.basic import fit

RESULTS = Path(__file__).parent / "results" / "classics.json"


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Run all pairs and write the result; quick takes 20 images and few steps."""
    import foolbox
    import torchattacks

    model, x, y = prepared(20 if quick else 100, epochs=5 if quick else 20)
    goal = (y + 1) % 10
    steps, searches, walks = (200, 6, 200) if quick else (1000, 9, 2500)
    a, fb = ws.attacks, foolbox.attacks
    peer = foolbox.PyTorchModel(model, bounds=(0, 1))

    def of_foolbox(attack: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            z = attack(peer, x, y, epsilons=None)[1]
            black = (z == 0).flatten(1).all(1)  # what foolbox returns where it found nothing
            return torch.where(black[:, None, None, None], x, z)

        return run

    cw = {"binary_search_steps": searches, "steps": steps, "stepsize": 0.01, "initial_const": 1e-3}
    jsma = torchattacks.JSMA(model, theta=1.0, gamma=0.25)
    pairs: dict[str, tuple[Any, Any, str, Callable[[], Tensor], Tensor | None]] = {
        "deepfool l2": (a.DeepFool(), L2(), "foolbox", of_foolbox(fb.L2DeepFoolAttack()), None),
        "deepfool linf": (a.DeepFool(Linf()), Linf(), "foolbox", of_foolbox(fb.LinfDeepFoolAttack()), None),
        "carlini_wagner": (
            a.CarliniWagner(steps=steps, searches=searches), L2(), "foolbox", of_foolbox(fb.L2CarliniWagnerAttack(**cw)),
            None,
        ),
        "jsma": (
            a.JSMA(gamma=0.25, objective=TargetedMargin(target=goal)), L0(), "torchattacks", lambda: jsma(x, y), goal
        ),
        "boundary": (
            a.Boundary(queries=2 * walks), L2(), "foolbox", of_foolbox(fb.BoundaryAttack(steps=walks)), None
        ),
    }  # fmt: skip
    rows = {}
    for name, (ours, threat, package, theirs, target) in pairs.items():
        rows[name] = compare(model, x, y, target, threat, lambda ours=ours: ours(model, x, y), theirs) | {
            "peer": package
        }
        print(name, rows[name], flush=True)
    result = {"images": len(x), "steps": steps, "searches": searches, "rows": rows}
    write_json(out, result)
    return result


def compare(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    threat: Any,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
) -> dict[str, float]:
    """Success, distance and seconds of both sides, and the ratio of the distances where both succeed."""
    (z, seconds), (w, their_seconds) = timed(ours), timed(theirs)
    with torch.no_grad():
        broken, theirs_broken = (
            p.argmax(1) != y if target is None else p.argmax(1) == target for p in (model(z), model(w))
        )
    both = broken & theirs_broken
    distance, their_distance = (float(threat.distance(x, p)[both].mean()) for p in (z, w))
    return {
        "success": float(broken.double().mean()),
        "peer_success": float(theirs_broken.double().mean()),
        "distance": distance,
        "peer_distance": their_distance,
        "distance_ratio": distance / their_distance,
        "seconds": seconds,
        "peer_seconds": their_seconds,
    }


def timed(make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The points, and how long they took."""
    begin = time.perf_counter()
    return make().detach(), time.perf_counter() - begin


def prepared(n: int, epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network and n test images that it gets right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn(8)
    train, test = (ws.load_data("digits", split=s) for s in ("train", "test"))
    batch, held = train.batch(range(len(train))), test.batch(range(len(test)))
    fit(model, (batch.x, batch.y), epochs)
    with torch.no_grad():
        right = (model(held.x).argmax(1) == held.y).nonzero().flatten()[:n]
    return model, held.x[right], held.y[right]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    main(**vars(parser.parse_args()))
