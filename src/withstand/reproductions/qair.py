"""QAIR beside the same search without a prior, on engines over learned embeddings of digits and clothes.

A network trained with labels embeds a gallery (digits of 8x8 pixels; clothes of Fashion-MNIST, 28x28), and the engine
returns the ten nearest items. The attacker has a few images of the domain, steals a substitute of another architecture
from the lists that they lead to, and attacks query images that are in neither; the radius on clothes was chosen with
another seed. `queries` counts all questions on an image until success, the clean one included, and an image that
withstands at the whole budget; those that stealing took are not in it, they are `stealing_queries`; `amortised_queries`
shares them among the images. SimBA and NES ask the same engine about the same relevance; their settings were chosen with
another seed. A reconstruction from the abstract: the engine of the paper (a public image search) and its other tables are
out of reach. So no claim is the paper's: they say what is expected or required of this library, or what a first trial had
shown.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks import QAIR, NESLists, SimBALists
from withstand.attacks.fit import fit_attack
from withstand.attacks.retrieval.stealing import Steal
from withstand.data import from_arrays, load_data
from withstand.models.retrieval import ImageIndex
from withstand.protocols import Batch, Claim
from withstand.random import Rows, derive
from withstand.threats import Linf

SYSTEM = "qair"

MOST = 0.6
"""The share of the queries without a prior that QAIR may need."""
SLACK = 0.05
"""By how much its success rate may lie lower."""

_DIGITS = {
    "data": "digits", "eps": 0.25, "train": 397, "gallery": 900, "images": 60, "known": 20, "steal": 300, "updates": 1200,
    "steps": 400, "queries": 150,
}  # fmt: skip
_CLOTHES = {
    "data": "fashion-mnist", "eps": 0.15, "train": 6000, "gallery": 2000, "images": 50, "known": 50, "steal": 1000,
    "updates": 600, "steps": 800, "queries": 200,
}  # fmt: skip
_LONG = {"gallery": 10_000, "images": 200, "steal": 2000, "updates": 5000, "steps": 4000, "device": "cuda"}
_TINY = _DIGITS | {"images": 20, "updates": 200, "steps": 150, "queries": 60}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"small": _TINY, "large": _TINY | {"size": 16}},
    "cpu": {"small": _DIGITS, "large": _CLOTHES},
    "gpu": {
        "small": _CLOTHES | _LONG | {"train": 10_000},
        "large": _CLOTHES | _LONG | {"data": "cifar10", "eps": 8 / 255, "train": 30_000},
    },
}
ARMS: dict[str, dict[str, Any]] = {
    "rgf": {},
    "rgf_count": {"gain": "count"},
    "rgf_linear": {"gain": "linear"},
    "prior_alone": {"substitute": "stolen", "q": 0},
    "p_rgf": {"substitute": "stolen", "first": False},
    "p_rgf_best": {"substitute": "stolen", "first": False, "lam": "auto"},
    "simba_pixel": {"attack": SimBALists, "basis": "pixel"},
    "simba_dct": {"attack": SimBALists},
    "nes": {"attack": NESLists},
    "qair": {"substitute": "stolen"},
    "qair_count": {"substitute": "stolen", "gain": "count"},
    "qair_linear": {"substitute": "stolen", "gain": "linear"},
    "white_box": {"substitute": "own", "q": 0},
}
"""Settings of the attack, QAIR where nothing else is said; the substitute is the stolen one, or the engine's own embedding
(the ceiling)."""
K, HELD = 10, 200

_EXPECTED = "own expectation"
_REQUIRED = "this library's requirement"
_TRIED = "own trial on digits"
_SET = {"small": "smaller images", "large": "larger images"}


def _claims(size: str) -> list[Claim]:
    def claim(
        statement: str, first: str, last: str, metric: str, source: str = _EXPECTED, direction: Any = "lower"
    ) -> Claim:
        arms = (f"{size} / {first}", f"{size} / {last}")
        return Claim(f"{statement} ({_SET[size]})", source, arms, metric, direction, SCALES)

    return [
        claim("It needs fewer queries than the same attack without a prior", "rgf", "qair", "queries"),
        claim(f"... at most {MOST:.0%} of them", "rgf_60_percent", "qair", "queries", _REQUIRED),
        claim("... and succeeds at most 5 points less often", "rgf_less_5_points", "qair", "success", _REQUIRED,
              "higher"),
        claim("Queries make it succeed more often than the prior alone", "prior_alone", "qair", "success",
              direction="higher"),
        claim("The relevance loss needs fewer queries than the count of shared items", "qair_count", "qair", "queries"),
        claim("... also without a prior", "rgf_count", "rgf", "queries"),
        claim("It needs fewer queries than SimBA along low frequencies", "simba_dct", "qair", "queries"),
        claim("... and than NES", "nes", "qair", "queries"),
        claim("With the questions of stealing shared among the images, it still needs fewer than without a prior", "rgf",
              "qair_amortised", "queries"),
        claim("The prior first needs fewer queries than the prior mixed in from the start", "p_rgf", "qair", "queries",
              _TRIED),
    ]  # fmt: skip


CLAIMS = [claim for size in _SET for claim in _claims(size)]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Build the engines, steal from them and attack them; see the package for the rows."""
    return {"rows": [r for size, s in SCALES[scale].items() for r in _measured(size, s, seed, progress)]}


def _measured(size: str, s: Mapping[str, Any], seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    train, test = (load_data(s["data"], split=part, size=s.get("size")) for part in ("train", "test"))
    learned, gallery = _parts(train, seed, s["train"], s["gallery"])
    images, known, held = _parts(test, seed, s["images"], s["known"], HELD)
    progress(f"{size}: engine")
    device = s.get("device", "cpu")
    own = engine_network(learned.to(device), s["updates"], seed)
    engine = ImageIndex(own, gallery.x, k=K)
    progress(f"{size}: stealing")
    steal, seeds = Steal(victim=engine, queries=s["steal"], steps=s["steps"]), from_arrays(known.x, None)
    stolen = fit_attack(steal, attacker_network(gallery.x, seed), seeds, epochs=10, seed=seed, accelerator=device)
    networks = {"own": own, "stolen": stolen.module}
    theirs, ours = engine(held.x), ImageIndex(stolen.module, gallery.x, k=K)(held.x)
    shared = [len(set(a) & set(b)) / K for a, b in zip(theirs, ours)]
    rows = [
        {"arm": f"{size} / stolen", "metric": "overlap", "examples": shared},
        {"arm": f"{size} / stolen", "metric": "stealing_queries", "examples": [int(stolen.history[-1]["queries"])]},
    ]
    share = int(stolen.history[-1]["queries"]) / len(images.x)
    found = {"noise": _noise(engine, images.x, s["eps"], seed)}
    for arm, settings in ARMS.items():
        progress(f"{size}: {arm}")
        given = (
            {**settings, "substitute": networks[settings["substitute"]]} if "substitute" in settings else dict(settings)
        )
        kind = given.pop("attack", QAIR)
        result = kind(Linf(s["eps"]), queries=s["queries"], **given).run(engine, images.x, seed=derive(seed, "attack"))
        spent = torch.where(result.success, result.cost_at_success, s["queries"])
        found[arm] = {"success": result.success.double(), "queries": spent.double()}
        if settings.get("substitute") == "stolen":
            found[arm]["amortised_queries"] = spent.double() + share
    found["qair_amortised"] = {"queries": found["qair"]["amortised_queries"]}
    found["rgf_60_percent"] = {"queries": MOST * found["rgf"]["queries"]}
    found["rgf_less_5_points"] = {"success": found["rgf"]["success"] - SLACK}
    for arm, metrics in found.items():
        for metric, examples in metrics.items():
            rows.append(
                {"arm": f"{size} / {arm}", "metric": metric, "examples": [round(v, 4) for v in examples.tolist()]}
            )
    return rows


def engine_network(learned: Batch, updates: int, seed: int) -> nn.Module:
    """An embedding of 32 numbers, learned with labels: cosines with one direction for each class."""
    x, y = learned.x, learned.y
    assert y is not None
    side = x.shape[-1] // 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "engine") & 0x7FFFFFFF)
        network = nn.Sequential(
            nn.Conv2d(x.shape[1], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * side * side, 32),
        ).to(x.device)  # fmt: skip
        classes = nn.Parameter(torch.randn(int(y.max()) + 1, 32).to(x.device))
    adam = torch.optim.Adam([*network.parameters(), classes], lr=1e-3)
    draw = torch.Generator().manual_seed(derive(seed, "batches"))
    for _ in range(updates):
        i = torch.randint(len(x), (128,), generator=draw).to(x.device)
        loss = F.cross_entropy(10 * F.normalize(network(x[i])) @ F.normalize(classes).T, y[i])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.eval()


def attacker_network(x: Tensor, seed: int) -> nn.Module:
    """Fresh weights of what the substitute is made of: no convolutions, another size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "substitute") & 0x7FFFFFFF)
        widths = (x[0].numel(), 128, 64, 64)
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers[:-1])


def _noise(engine: ImageIndex, x: Tensor, eps: float, seed: int) -> dict[str, Tensor]:
    """One question with random signs: the floor."""
    z = (x + eps * Rows.count(derive(seed, "noise"), len(x)).signs(tuple(x.shape[1:]), "noise")).clamp(0, 1)
    apart = [not set(a) & set(b) for a, b in zip(engine(x), engine(z))]
    return {"success": torch.tensor(apart).double()}


def _parts(data: Any, seed: int, *sizes: int) -> list[Batch]:
    """Disjoint random parts of a set."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive(seed, data.name))).tolist()
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [data.batch(order[end - size : end]) for size, end in zip(sizes, ends)]
