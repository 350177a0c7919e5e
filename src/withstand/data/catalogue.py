"""The data sets that withstand knows by name. Plain literals: listing them imports nothing else."""

from itertools import starmap
from typing import NamedTuple

from withstand.errors import unknown


class Entry(NamedTuple):
    """One data set.

    compact: split -> file under the root (one part only: "all"). label: the array or column of that file that holds the
    labels; several columns, joined by commas, make a multi-label set. public: folder or file of the layout that torchvision
    reads and writes, with {split} where it differs. torchvision: the class that can download it. size: side in pixels where
    the images come in many shapes. series: the prefix of its arrays in an archive of time series. aliases: other names.
    """

    name: str
    summary: str
    source: str
    compact: dict[str, str] = {}
    label: str = "label"
    public: str = ""
    torchvision: str = ""
    size: int | None = None
    aliases: tuple[str, ...] = ()
    series: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that is looked for under the root, the complete public layout first."""
        return tuple(dict.fromkeys([*filter(None, [self.public.format(split="*")]), *self.compact.values()]))


def _both(train: str, test: str = "") -> dict[str, str]:
    return {"train": train, "test": test or train}


def _series(name: str, channels: int, length: int, classes: int) -> Entry:
    file, source = ("uea.npz", "UEA archive") if channels > 1 else ("ucr.npz", "UCR archive")
    shape = f"{channels} channels of {length} steps" if channels > 1 else f"{length} steps"
    return Entry(name, f"time series, {shape}, {classes} classes", source, _both(f"timeseries/{file}"), series=name)


SETS = (
    Entry("digits", "handwritten digits, 8x8 grey, 10 classes; 1,297 to train, 500 to test", "scikit-learn, embedded"),
    Entry(
        "mnist", "handwritten digits, 28x28 grey, 10 classes", "LeCun, Cortes, Burges",
        _both("vision/mnist.npz"), "y", "MNIST/raw", "MNIST",
    ),
    Entry(
        "fashion-mnist", "articles of clothing, 28x28 grey, 10 classes", "Xiao, Rasul, Vollgraf 2017",
        _both("vision/fashion_mnist.npz"), "y", "FashionMNIST/raw", "FashionMNIST", aliases=("fmnist",),
    ),
    Entry("notmnist", "letters A-J of many fonts, 28x28 grey", "Bulatov 2011", {"all": "vision/notmnist.npz"}, "y"),
    Entry(
        "omniglot", "characters of 8 alphabets, 105x105 ink = 1, 242 classes", "Lake, Salakhutdinov, Tenenbaum 2015",
        {"all": "vision/omniglot.npz"}, "char",
    ),
    Entry(
        "cifar10", "small photographs, 32x32 RGB, 10 classes", "Krizhevsky 2009",
        _both("vision/cifar10_train.zip", "vision/cifar10_test.zip"), "label", "cifar-10-batches-py", "CIFAR10",
        aliases=("cifar-10",),
    ),
    Entry(
        "cifar100", "small photographs, 32x32 RGB, 100 classes", "Krizhevsky 2009",
        _both("vision/cifar100_train.zip", "vision/cifar100_test.zip"), "label", "cifar-100-python", "CIFAR100",
        aliases=("cifar-100",),
    ),
    Entry(
        "svhn", "house numbers, 32x32 RGB, 10 classes", "Netzer et al. 2011",
        public="{split}_32x32.mat", torchvision="SVHN",
    ),
    Entry(
        "gtsrb", "German traffic signs, 32x32 RGB, 43 classes", "Stallkamp et al. 2012",
        _both("vision/traffic_signs.zip"), "label", "gtsrb", "GTSRB", 32, ("traffic-signs",),
    ),
    Entry(
        "imagenet", "photographs, 1,000 classes (the validation part, one folder per class)", "Russakovsky et al. 2015",
        public="imagenet", size=224, aliases=("imagenet-1k",),
    ),
    Entry(
        "imagenet-samples", "872 photographs, at most one of each ImageNet class", "Russakovsky et al. 2015",
        {"all": "vision/imagenet_samples.zip"}, "class_index", size=224,
    ),
    Entry(
        "tiny-imagenet", "photographs, 64x64 RGB, up to 200 ImageNet classes", "Le, Yang 2015",
        _both("vision/tiny_imagenet.zip"), "label", "tiny-imagenet-200", aliases=("tinyimagenet",),
    ),
    Entry(
        "dtd", "textures, 128x128 RGB, 47 classes (compact: 10)", "Cimpoi et al. 2014",
        {"all": "vision/textures.zip"}, "label", "dtd", "DTD", 128, ("textures",),
    ),
    Entry(
        "coil20", "objects on a turntable, 32x32 grey, 20 classes", "Nene, Nayar, Murase 1996",
        {"all": "vision/coil20.npz"}, "obj", aliases=("coil-20",),
    ),
    Entry(
        "birds", "birds of 10 kinds (CUB-200), 128x128 RGB", "Wah et al. 2011",
        {"all": "vision/birds10.zip"}, size=128, aliases=("cub", "birds10"),
    ),
    Entry(
        "cars", "cars of 40 models (Stanford Cars), 128x128 RGB", "Krause et al. 2013",
        {"all": "vision/cars40.zip"}, aliases=("stanford-cars", "cars40"),
    ),
    Entry(
        "voc", "photographs of buses, cars, cats, persons and trains, often several at once (multi-label)",
        "PASCAL VOC, Everingham et al. 2010", {"all": "vision/voc5_multilabel.zip"}, "bus,car,cat,person,train", size=128,
        aliases=("voc5", "pascal-voc"),
    ),
    Entry(
        "orl", "faces of 40 people (AT&T), 112x92 grey", "Samaria, Harter 1994",
        {"all": "faces/orl.npz"}, "identity", aliases=("att-faces",),
    ),
    Entry(
        "yale", "faces of 15 people, 122x160 grey", "Belhumeur, Hespanha, Kriegman 1997",
        {"all": "faces/yale.npz"}, "identity", aliases=("yale-faces",),
    ),
    Entry(
        "yaleb", "faces of 38 people under many lights (Extended Yale B), 24x24 grey", "Georghiades et al. 2001",
        {"all": "faces/yaleb24.npz"}, "identity", aliases=("yaleb24",),
    ),
    Entry(
        "lfw", "faces of 158 people (LFW), 96x96 RGB", "Huang et al. 2007",
        {"all": "faces/lfw_crops.zip"}, "identity", aliases=("lfw-crops",),
    ),
    *starmap(_series, (
        ("ArrowHead", 1, 251, 3), ("BME", 1, 128, 3), ("Beef", 1, 470, 5), ("BirdChicken", 1, 512, 2),
        ("CBF", 1, 128, 3), ("Chinatown", 1, 24, 2), ("Coffee", 1, 286, 2), ("CricketX", 1, 300, 12),
        ("DistalPhalanxTW", 1, 80, 6), ("ECG200", 1, 96, 2), ("ECGFiveDays", 1, 136, 2), ("FaceFour", 1, 350, 4),
        ("GunPoint", 1, 150, 2), ("Ham", 1, 431, 2), ("ItalyPowerDemand", 1, 24, 2), ("Lightning7", 1, 319, 7),
        ("MedicalImages", 1, 99, 10), ("MoteStrain", 1, 84, 2), ("OSULeaf", 1, 427, 6), ("OliveOil", 1, 570, 4),
        ("Plane", 1, 144, 7), ("PowerCons", 1, 144, 2), ("SmoothSubspace", 1, 15, 3),
        ("SonyAIBORobotSurface1", 1, 70, 2), ("Strawberry", 1, 235, 2), ("SwedishLeaf", 1, 128, 15),
        ("SyntheticControl", 1, 60, 6), ("ToeSegmentation1", 1, 277, 2), ("Trace", 1, 275, 4), ("TwoLeadECG", 1, 82, 2),
        ("UMD", 1, 150, 3), ("AtrialFibrillation", 2, 640, 3), ("BasicMotions", 6, 100, 4), ("Epilepsy", 3, 206, 4),
        ("JapaneseVowels", 12, 25, 9), ("NATOPS", 24, 51, 6),
    )),
)  # fmt: skip


def plain(name: str) -> str:
    """A name as it is compared: lower case, hyphens for underscores and spaces."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def find(name: str) -> Entry:
    """The set with this name or alias. Raises BadInput with the nearest names."""
    for entry in SETS:
        if plain(name) in (plain(entry.name), *entry.aliases):
            return entry
    raise unknown("data", name, (n for e in SETS for n in (e.name, *e.aliases)))
