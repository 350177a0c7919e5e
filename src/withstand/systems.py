"""The 42 published systems that withstand is made of: a table of facts, and where results are recorded.

Nothing heavy is imported here, so that `withstand list systems` costs nothing.
"""

from dataclasses import dataclass
from pathlib import Path

_RESULTS = Path(__file__).parent / "reproductions" / "results"


@dataclass(frozen=True)
class System:
    """One published system.

    id: how commands and components name it. year: of the first public version. results: paths of the recorded
    results, one for each scale that was run, separated by spaces; "" where nothing is recorded yet.
    """

    id: str
    name: str
    family: str
    purpose: str
    paper: str
    year: int
    results: str = ""


def systems() -> list[System]:
    """All systems in the order of the families, with the paths of their recorded results."""
    return [System(*facts, results=recorded(facts[0])) for facts in _TABLE]


def recorded(system: str) -> str:
    """Paths of what `withstand reproduce` recorded for a system, separated by spaces; "" where there is none."""
    return " ".join(str(path) for path in sorted(_RESULTS.glob(f"{system}.*.json")))


_TABLE: tuple[tuple[str, str, str, str, str, int], ...] = (
    (
        "dra",
        "DRA",
        "evasion",
        "make a surrogate's input gradient point along the data density, so that what it crafts transfers",
        "Towards Understanding and Boosting Adversarial Transferability from a Distribution Perspective",
        2022,
    ),
    (
        "tpa",
        "TPA",
        "evasion",
        "craft transferable examples by optimising a proven bound on transferability",
        "Transferability Bound Theory: Exploring Relationship between Adversarial Transferability and Flatness",
        2023,
    ),
    (
        "bia",
        "BIA (with RN and DA)",
        "evasion",
        "train a perturbation generator in one domain that harms models of domains it never saw",
        "Beyond ImageNet Attack: Towards Crafting Adversarial Examples for Black-box Domains",
        2022,
    ),
    (
        "qair",
        "QAIR",
        "evasion",
        "mislead an image search that shows its nearest images and nothing else, with few queries",
        "QAIR: Practical Query-efficient Black-Box Attacks for Image Retrieval",
        2021,
    ),
    (
        "advknn",
        "AdvKNN",
        "evasion",
        "attack nearest-neighbour classifiers through a small network that imitates their vote",
        "AdvKnn: Adversarial Attacks on k-Nearest Neighbor Classifiers with Approximate Gradients",
        2019,
    ),
    (
        "ask",
        "ASK (attack and defence)",
        "evasion",
        "attack nearest-neighbour classifiers through a soft vote, and train against it",
        "ASK: Adversarial Soft k-Nearest Neighbor Attack and Defense",
        2021,
    ),
    (
        "tsa_stat",
        "TSA-STAT",
        "evasion",
        "attack time series within bounds on their statistics, with a certificate for the defender",
        "Adversarial Framework with Certified Robustness for Time-Series Domain via Statistical Features",
        2022,
    ),
    (
        "aigan",
        "AI-GAN",
        "evasion",
        "train a generator that emits targeted perturbations in one pass",
        "AI-GAN: Attack-Inspired Generation of Adversarial Examples",
        2020,
    ),
    (
        "gpga",
        "G-PGA",
        "evasion",
        "use a surrogate's gradients to see through models that mask their own",
        "Guidance Through Surrogate: Towards a Generic Diagnostic Attack",
        2022,
    ),
    (
        "classic_attacks",
        "Review of attacks and defences",
        "evasion",
        "compare the classic attacks and defences on one footing, from logistic regression to networks",
        "A Review of Adversarial Attack and Defense for Classification Methods",
        2021,
    ),
    (
        "dat",
        "DAT",
        "hardening",
        "train on adversarial images that were rebuilt from a learned codebook",
        "Enhance the Visual Representation via Discrete Adversarial Training",
        2022,
    ),
    (
        "rvt",
        "RVT and RVT*",
        "hardening",
        "build a vision transformer from the parts that help robustness",
        "Towards Robust Vision Transformer",
        2021,
    ),
    (
        "advprop",
        "AdvProp",
        "hardening",
        "learn from adversarial images through normalisation layers of their own, to gain clean accuracy",
        "Adversarial Examples Improve Image Recognition",
        2019,
    ),
    (
        "multibn",
        "MultiBN",
        "hardening",
        "keep a normalisation branch for each kind of attack and learn to choose among them, for video",
        "Defending Against Multiple and Unforeseen Adversarial Videos",
        2020,
    ),
    (
        "nofrost",
        "NoFrost",
        "hardening",
        "train robustly without any batch normalisation",
        "Removing Batch Normalization Boosts Adversarial Training",
        2022,
    ),
    (
        "stylized_defense",
        "Stylized adversarial training (SAT)",
        "hardening",
        "train with perturbations that borrow style, content and boundary of another class",
        "Stylized Adversarial Defense",
        2020,
    ),
    (
        "dial",
        "DIAL",
        "hardening",
        "learn features by which clean and adversarial images cannot be told apart",
        "Domain Invariant Adversarial Learning",
        2021,
    ),
    (
        "jsigr",
        "J-SIGR",
        "hardening",
        "train with a normalised Jacobian and a penalty on selected input gradients, without attacks",
        "Jacobian Norm with Selective Input Gradient Regularization for Improved and Interpretable Adversarial Defense",
        2022,
    ),
    (
        "ladder",
        "LADDER",
        "hardening",
        "train on examples whose latent code was moved across a linear boundary",
        "Latent Boundary-guided Adversarial Training",
        2022,
    ),
    (
        "augmax",
        "AugMax-DuBIN",
        "hardening",
        "train on the worst mixture of random augmentations, with two kinds of normalisation",
        "AugMax: Adversarial Composition of Random Augmentations for Robust Training",
        2021,
    ),
    (
        "faat",
        "FAAT",
        "hardening",
        "align clean and adversarial features class by class during adversarial training",
        "Push Stricter to Decide Better: A Class-Conditional Feature Adaptive Framework for Improving Adversarial "
        "Robustness",
        2021,
    ),
    (
        "iat",
        "Interpolated adversarial training",
        "hardening",
        "mix pairs of clean and of adversarial images, to lose less clean accuracy",
        "Interpolated Adversarial Training: Achieving Robust Neural Networks without Sacrificing Too Much Accuracy",
        2019,
    ),
    (
        "pyramidat",
        "PyramidAT",
        "hardening",
        "train vision transformers on perturbations of several scales, with matched dropout",
        "Pyramid Adversarial Training Improves ViT Performance",
        2021,
    ),
    (
        "rl_denoiser",
        "RL denoiser (RL-Deadv)",
        "hardening",
        "let an agent choose which small denoisers to apply to an attacked image",
        "Defense Against Adversarial Attacks Using a Denoiser by deep RL (challenge slides)",
        2019,
    ),
    (
        "mdprop",
        "MDProp",
        "metric learning and retrieval",
        "train embeddings on examples pulled towards several classes at once, with several normalisation branches",
        "Advancing Deep Metric Learning Through Multiple Batch Norms And Multi-Targeted Adversarial Examples",
        2022,
    ),
    (
        "cbml",
        "CBML",
        "metric learning and retrieval",
        "learn embeddings from posterior contrast with a bound on the spread of the metric",
        "Contrastive Bayesian Analysis for Deep Metric Learning",
        2022,
    ),
    (
        "cgat",
        "CgAT",
        "metric learning and retrieval",
        "harden hashing retrieval by attacking and training against one centre code per image",
        "CgAT: Center-Guided Adversarial Training for Deep Hashing-Based Retrieval",
        2022,
    ),
    (
        "maxmatch",
        "MaxMatch",
        "semi- and self-supervised",
        "ask unlabelled images to be consistent under the worst of several augmentations",
        "MaxMatch: Semi-Supervised Learning with Worst-Case Consistency",
        2022,
    ),
    (
        "csl_robustness",
        "Robust contrastive self-supervision",
        "semi- and self-supervised",
        "explain why contrastive features break more easily, and mend it",
        "Contrastive Self-Supervised Learning Leads to Higher Adversarial Susceptibility",
        2022,
    ),
    (
        "bats",
        "BATS",
        "out of distribution",
        "clip features to their typical range before scoring how unfamiliar an input is",
        "Boosting Out-of-distribution Detection with Typical Features",
        2022,
    ),
    (
        "ood_human_centric",
        "Human-centric OOD evaluation",
        "out of distribution",
        "judge detectors by whether they reject what the model gets wrong and accept what it gets right",
        "Rethinking Out-of-Distribution Detection From a Human-Centric Perspective",
        2022,
    ),
    (
        "imagenet_e",
        "ImageNet-E",
        "benchmark and editing",
        "edit an object's background, size, place and direction, and measure what accuracy that costs",
        "ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing",
        2023,
    ),
    (
        "mcl",
        "MCL",
        "backdoor",
        "recover a backdoor's trigger and unlearn it with a small clean set",
        "Model-Contrastive Learning for Backdoor Defense",
        2022,
    ),
    (
        "dmmia",
        "DMMIA",
        "privacy",
        "rebuild training classes from a model with the help of prototypes learned on the way",
        "Model Inversion Attack via Dynamic Memory Learning",
        2023,
    ),
    (
        "refiner",
        "Refiner",
        "privacy",
        "let federated clients send gradients of refined data, to leak less than noise would for the same use",
        "Refiner: Data Refining against Gradient Leakage Attacks in Federated Learning",
        2022,
    ),
    (
        "iap",
        "IAP",
        "forgery and provenance",
        "protect a portrait with a perturbation that spoils face editors and carries a message",
        "Information-containing Adversarial Perturbation for Combating Facial Manipulation Systems",
        2023,
    ),
    (
        "spsl",
        "SPSL",
        "forgery and provenance",
        "find forged faces from the phase of their spectrum with a shallow network",
        "Spatial-Phase Shallow Learning: Rethinking Face Forgery Detection in Frequency Domain",
        2021,
    ),
    (
        "smil",
        "S-MIL",
        "forgery and provenance",
        "find videos in which only some faces or frames are forged",
        "Sharp Multiple Instance Learning for DeepFake Video Detection",
        2020,
    ),
    (
        "erasure",
        "Concept-erasure study and toolkit",
        "generative safety",
        "remove unsafe concepts from text-to-image models and judge the removal from six sides",
        "Comprehensive Assessment and Analysis for NSFW Content Erasure in Text-to-Image Diffusion Models",
        2025,
    ),
    (
        "kelp",
        "Kelp and StreamGuardBench",
        "generative safety",
        "flag unsafe output of a language model token by token from its hidden states",
        "Kelp: A Streaming Safeguard for Large Models via Latent Dynamics-Guided Risk Detection",
        2025,
    ),
    (
        "featnn",
        "FeatNN",
        "domain",
        "predict how strongly a compound binds a protein from structure and sequence",
        "Enhanced compound-protein binding affinity prediction by representing protein multimodal information via a "
        "coevolutionary strategy",
        2022,
    ),
    (
        "dbn_hosts",
        "DBN risky hosts",
        "domain",
        "rank the hosts that a security team should look at first",
        "A Deep Belief Network Based Machine Learning System for Risky Host Detection",
        2017,
    ),
)
