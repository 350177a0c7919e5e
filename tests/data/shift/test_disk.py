"""What is found on the disk before any work."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.shift.trees import cifar_c, corrupted, edits, objectnet, tree
from withstand.data.folders import wnids
from withstand.data.shift.classes import IMAGENET_A, IMAGENET_R, OBJECTNET
from withstand.data.shift.disk import class_order, survey
from withstand.data.shift.table import benchmark
from withstand.data.shift.view import View
from withstand.errors import BadInput

KINDS = ("fog", "snow")
A = replace(benchmark("imagenet-a"), images=400)
VAL = replace(benchmark("imagenet"), each=1, images=3, subset=(0, 5, 999))
C = replace(benchmark("imagenet-c"), each=1, images=3, subset=(0, 5, 999))
CIFAR = replace(benchmark("cifar10-c"), images=4)


def _archived(file):
    with open(file, "wb") as target:
        np.savez(target, np.zeros(4))


def labels(stock, key=""):
    return stock.cells[key].listing().labels.tolist()


def test_a_whole_set_has_nothing_missing_and_labels_by_wordnet_id(tmp_path):
    tree(tmp_path / "imagenet-a", IMAGENET_A, 2)
    stock = survey(A, tmp_path)
    assert stock.missing == ()
    assert stock.images == 400
    assert sorted(set(labels(stock))) == list(IMAGENET_A)


def test_a_part_of_the_classes_keeps_its_labels_and_is_refused_unless_asked_for(tmp_path):
    tree(tmp_path / "imagenet-a", IMAGENET_A[100:103], 2)
    absent = wnids()[IMAGENET_A[0]]
    with pytest.raises(BadInput, match=rf"197 of 200 classes have no images: {absent}[\s\S]*--partial"):
        survey(A, tmp_path)
    stock = survey(A, tmp_path, partial=True)
    assert sorted(set(labels(stock))) == list(IMAGENET_A[100:103])
    assert len(stock.missing) == 1


def test_missing_and_surplus_images_are_counted_by_class(tmp_path):
    tree(tmp_path / "imagenet-val", (0, 5), 1)
    tree(tmp_path / "imagenet-val", (999,), 2)
    with pytest.raises(BadInput, match=r"1 classes do not have 1 images: n15075141 \(2\)"):
        survey(VAL, tmp_path)
    with pytest.raises(BadInput, match="6 images instead of 400"):
        survey(replace(A, subset=(0, 5, 999)), tree(tmp_path / "x", (0, 5, 999), 2))


def test_classes_of_another_benchmark_are_refused_by_name(tmp_path):
    tree(tmp_path / "imagenet-a", (0,), 1)  # a tench is not in ImageNet-A
    with pytest.raises(BadInput, match=r"the class folder 'n01440764'.*200 names"):
        survey(A, tmp_path, partial=True)
    (tmp_path / "imagenet-val" / "dogs").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"the class folder 'dogs'.*3 names"):
        survey(VAL, tmp_path, partial=True)


def test_folders_called_by_number_are_read_as_numbers_never_by_position(tmp_path):
    v2 = benchmark("imagenet-v2")
    for name in ("0", "1", "10", "2", "0999"):
        (tmp_path / "imagenetv2" / name).mkdir(parents=True)
    order = class_order(v2, tmp_path / "imagenetv2")
    assert order == {"0": 0, "1": 1, "10": 10, "2": 2, "0999": 999}
    (tmp_path / "imagenetv2" / "0010").mkdir()
    with pytest.raises(BadInput, match="two folders for class 10"):
        class_order(v2, tmp_path / "imagenetv2")
    (tmp_path / "imagenetv2" / "0010").rename(tmp_path / "imagenetv2" / "1000")
    with pytest.raises(BadInput, match="'1000'"):
        class_order(v2, tmp_path / "imagenetv2")


def test_objectnet_goes_by_position_and_drops_what_imagenet_has_not(tmp_path):
    objectnet(tmp_path / "ObjectNet" / "images")
    stock = survey(benchmark("objectnet"), tmp_path)
    assert sorted(set(labels(stock))) == sorted(set(OBJECTNET.values()))
    assert stock.images == 113


def test_a_picture_that_is_all_border_is_refused_by_name(tmp_path):
    images = objectnet(tmp_path / "ObjectNet" / "images")
    Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(images / "thing_001" / "000.png")
    with pytest.raises(BadInput, match=r"thing_001/000.png: got 9 x 4 pixels"):
        survey(benchmark("objectnet"), tmp_path).cells[""].listing().pixels(0, View(8, 8), "inside")


def test_a_part_of_objectnet_needs_the_table_of_all_its_folders(tmp_path):
    images = objectnet(tmp_path / "ObjectNet" / "images", keep=(1, 4, 284))
    with pytest.raises(BadInput, match=r"3 class folders.*all 313.*mappings"):
        survey(benchmark("objectnet"), tmp_path, partial=True)
    table = images.parent / "mappings" / "folder_to_objectnet_label.json"
    table.parent.mkdir()
    table.write_text(json.dumps({f"thing_{i:03d}": f"Thing {i}" for i in range(313)}))
    assert labels(survey(benchmark("objectnet"), tmp_path, partial=True)) == [1, 4, 284]
    with pytest.raises(BadInput, match="110 of 113 classes have no images"):
        survey(benchmark("objectnet"), tmp_path)
    table.write_text("{}")
    with pytest.raises(BadInput, match="0 folders; allowed: 313"):
        survey(benchmark("objectnet"), tmp_path, partial=True)


def test_corrupted_sets_are_found_with_and_without_the_groups_of_the_archives(tmp_path):
    corrupted(tmp_path / "imagenet-c", KINDS, (0, 5, 999))
    (tmp_path / "imagenet-c" / "weather").mkdir()
    (tmp_path / "imagenet-c" / "fog").rename(tmp_path / "imagenet-c" / "weather" / "fog")
    stock = survey(C, tmp_path, KINDS)
    assert list(stock.cells) == [f"{kind}/{s}" for kind in KINDS for s in range(1, 6)]
    assert stock.missing == ()
    assert stock.aligned


def test_two_folders_of_one_corruption_are_refused(tmp_path):
    place = corrupted(tmp_path / "imagenet-c", KINDS, (0, 5, 999))
    corrupted(place / "weather", ("fog",), (0,))
    with pytest.raises(BadInput, match="two folders of fog"):
        survey(C, tmp_path, KINDS)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_manifest_that_says_nothing_is_refused(tmp_path, text):
    place = tree(tmp_path / "imagenet-val", (0, 5, 999), 1)
    (place / "withstand.json").write_text(text)
    with pytest.raises(BadInput, match=r"withstand.json: got no manifest"):
        survey(VAL, tmp_path)


def test_hidden_files_beside_the_arrays_are_passed_over(tmp_path):
    place = cifar_c(tmp_path / "CIFAR-10-C", KINDS, [3, 1, 4, 1], 1)
    (place / "._fog.npy").write_bytes(b"left by another system")
    assert len(survey(CIFAR, tmp_path, KINDS).cells) == 10


def test_missing_corruptions_severities_and_images_are_listed(tmp_path):
    place = corrupted(tmp_path / "imagenet-c", KINDS, (0, 5, 999))
    (place / "fog" / "2" / "n15075141" / "000.png").unlink()
    (place / "fog" / "5").rename(tmp_path / "aside")
    with pytest.raises(BadInput) as error:
        survey(C, tmp_path, (*KINDS, "frost"))
    for said in ("frost: no folder", "fog/5: no folder", "fog/2: 1 of 3 classes have no images: n15075141"):
        assert said in str(error.value)
    stock = survey(C, tmp_path, (*KINDS, "frost"), partial=True)
    assert "fog/5" not in stock.cells
    assert not stock.aligned


def test_what_all_cells_lack_is_said_once(tmp_path):
    corrupted(tmp_path / "imagenet-c", KINDS, (0, 5))
    stock = survey(C, tmp_path, KINDS, partial=True)
    assert stock.missing == ("fog/1, fog/2, fog/3 and 7 more: 1 of 3 classes have no images: n15075141",)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("foggy/1", "the folder 'foggy'"),
        ("fog/6", "the folder '6'; allowed: severities 1 to 5"),
    ],
)
def test_unknown_corruptions_and_severities_are_refused_by_name(tmp_path, made, said):
    place = corrupted(tmp_path / "imagenet-c", KINDS, (0,))
    (place / made).mkdir(parents=True)
    with pytest.raises(BadInput, match=said):
        survey(C, tmp_path, KINDS, partial=True)


@pytest.mark.parametrize("copies", [1, 5])
def test_the_labels_of_cifar_c_come_once_or_five_times(tmp_path, copies):
    cifar_c(tmp_path / "CIFAR-10-C", KINDS, [3, 1, 4, 1], copies)
    stock = survey(CIFAR, tmp_path, KINDS)
    assert labels(stock, "fog/5") == [3, 1, 4, 1]
    assert stock.cells["snow/2"].listing().pixels(3, None, "whole")[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda p: (p / "labels.npy").unlink(), "no labels.npy"),
        (lambda p: np.save(p / "labels.npy", np.array([3, 1, 4])), r"3 labels; allowed: 4 or five times"),
        (lambda p: np.save(p / "labels.npy", np.arange(20) % 9), "five times the same"),
        (lambda p: np.save(p / "labels.npy", np.array([3, 1, 4, 10])), "labels from 1 to 10"),
        (lambda p: np.save(p / "labels.npy", np.array([3.0, 1, 4, 1])), "float64"),
        (lambda p: np.save(p / "mist.npy", np.zeros(1)), "mist.npy"),
        (lambda p: (p / "fog.npy").unlink(), "fog.npy: missing"),
        (lambda p: np.save(p / "fog.npy", np.zeros((19, 32, 32, 3), np.uint8)), "uint8 .19, 32, 32, 3."),
        (lambda p: np.save(p / "fog.npy", np.zeros((20, 3, 32, 32), np.uint8)), "allowed: uint8"),
        (lambda p: np.save(p / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8)), "4 labels; allowed: 2"),
        (lambda p: _archived(p / "fog.npy"), "an archive of arrays"),
        (lambda p: (p / "fog.npy").write_bytes((p / "fog.npy").read_bytes()[:-100]), "not a whole .npy file"),
        (lambda p: np.save(p / "fog.npy", np.array([{}]), allow_pickle=True), "not a whole .npy file"),
    ],
)
def test_arrays_that_are_not_what_they_should_be_are_refused(tmp_path, break_it, said):
    break_it(cifar_c(tmp_path / "CIFAR-10-C", KINDS, [3, 1, 4, 1], 1))
    with pytest.raises(BadInput, match=said):
        survey(CIFAR, tmp_path, KINDS)


def test_fewer_images_than_the_test_part_are_a_part(tmp_path):
    cifar_c(tmp_path / "CIFAR-10-C", KINDS, [3, 1, 4, 1], 1)
    with pytest.raises(BadInput, match="4 images at each severity instead of 10,000"):
        survey(benchmark("cifar10-c"), tmp_path, KINDS)


def test_files_that_are_no_images_and_empty_ones_are_refused(tmp_path):
    place = tree(tmp_path / "imagenet-val", (0, 5, 999), 1)
    (place / "n01440764" / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match=r"no images: n01440764/notes.txt"):
        survey(VAL, tmp_path)
    (place / "n01440764" / "notes.txt").unlink()
    (place / "n15075141" / "000.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"empty files: n15075141/000.png"):
        survey(VAL, tmp_path)


def test_deep_files_are_refused_even_without_looking(tmp_path):
    place = tree(tmp_path / "imagenet-val", (0, 5, 999), 1)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(place / "n15075141" / "000.png")
    listing = survey(VAL, tmp_path).cells[""].listing()
    with pytest.raises(BadInput, match=r"n15075141/000.png: got more than 8 bits"):
        listing.pixels(2, View(8, 8), "whole")


def test_truncated_files_are_found_by_looking(tmp_path):
    place = tree(tmp_path / "imagenet-val", (0, 5, 999), 1)
    file = place / "n15075141" / "000.png"
    file.write_bytes(file.read_bytes()[:-20])
    listing = survey(VAL, tmp_path).cells[""].listing()
    damaged = listing.damaged(np.arange(3))
    assert len(damaged) == 1
    assert str(file) in damaged[0]


def test_the_benchmark_is_found_by_its_usual_names_or_as_the_root_itself(tmp_path):
    place = tree(tmp_path / "ImageNet-A", IMAGENET_A[:1], 1)
    assert survey(A, tmp_path, partial=True).place == place
    assert survey(A, place, partial=True).place == place
    with pytest.raises(BadInput, match="not below"):
        survey(A, place, partial=True, alone=False)
    with pytest.raises(BadInput, match=r"looked for .*imagenet-val"):
        survey(VAL, tmp_path)
    with pytest.raises(BadInput, match="root: got"):
        survey(VAL, tmp_path / "nowhere")


def test_a_listing_changes_with_the_files(tmp_path):
    place = tree(tmp_path / "imagenet-val", (0, 5, 999), 1)
    cell = survey(VAL, tmp_path).cells[""]
    before = cell.listing()
    assert cell.listing().digest == before.digest
    (place / "n15075141" / "000.png").write_bytes(b"other")
    assert cell.listing().digest != before.digest
    assert cell.listing().identities == before.identities


def test_names_and_aliases():
    assert benchmark("ImageNet_V2").name == benchmark("v2").name == "imagenet-v2"
    with pytest.raises(BadInput, match="Did you mean imagenet-sketch"):
        benchmark("imagenet-sketches")


# ImageNet-E ----------------------------------------------------------------------------------------------------------

E = replace(benchmark("imagenet-e"), images=2)
PARTS = ("ori", "inver", "20")


def test_edits_are_flat_folders_labelled_by_a_table(tmp_path):
    edits(tmp_path / "imagenet-e", PARTS, {"a": 5, "b": 999})
    stock = survey(E, tmp_path, PARTS)
    assert list(stock.cells) == list(PARTS)
    assert labels(stock, "20") == [5, 999]
    assert stock.missing == ()
    assert stock.aligned


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda p: (p / "labels.txt").unlink(), "another layout"),
        (lambda p: (p / "labels.txt").write_text("a.png\t1000\n"), "line 1"),
        (lambda p: (p / "labels.txt").write_text("a.png 5\n"), "line 1"),
        (lambda p: (p / "labels.txt").write_text("a.png\t5\n"), "files without a label: b.png"),
        (lambda p: (p / "labels.txt").write_bytes(b"\xff\xfe\n"), "line 1"),
        (lambda p: (p / "labels.txt").write_text("a.png\t5\nb.png\t9\na.png\t6\n"), "line 3: another label for a.png"),
        (lambda p: (p / "20" / "b.jpg").write_bytes(b"x"), "several files of one image: b"),
        (lambda p: [f.unlink() for f in (p / "ori").iterdir()], "ori: got no images"),
        (lambda p: (p / "blurred").mkdir(), "the folder 'blurred'"),
        (lambda p: (p / "20").rename(p.parent / "aside"), "20: no folder"),
        (lambda p: (p / "20" / "b.png").unlink(), "20: 1 images instead of 2"),
        (lambda p: (p / "20" / "b.png").write_bytes(b""), "empty files, or no images: b.png"),
    ],
)
def test_edits_that_are_not_what_they_should_be_are_refused(tmp_path, break_it, said):
    break_it(edits(tmp_path / "imagenet-e", PARTS, {"a": 5, "b": 999}))
    with pytest.raises(BadInput, match=said):
        survey(E, tmp_path, PARTS, partial="ori" in said)


# The table of benchmarks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "images", "each", "classes", "part"),
    [
        ("imagenet", "imagenet-val", 50_000, 50, 1000, "centre"),
        ("imagenet-v2", "imagenetv2", 10_000, 10, 1000, "centre"),
        ("imagenet-a", "imagenet-a", 7_500, None, 200, "centre"),
        ("imagenet-r", "imagenet-r", 30_000, None, 200, "centre"),
        ("imagenet-sketch", "imagenet-sketch", 50_889, None, 1000, "centre"),
        ("stylized", "imagenet-style", 50_000, 50, 1000, "whole"),
        ("objectnet", "ObjectNet/images", None, None, 1000, "inside"),
        ("imagenet-c", "imagenet-c", 50_000, 50, 1000, "whole"),
        ("cifar10-c", "CIFAR-10-C", 10_000, None, 10, "whole"),
        ("cifar100-c", "CIFAR-100-C", 10_000, None, 100, "whole"),
        ("imagenet-e", "imagenet-e", 4_352, None, 1000, "centre"),
    ],
)
def test_every_benchmark_is_what_its_paper_says(name, folder, images, each, classes, part):
    b = benchmark(name)
    assert (b.folders[0], b.images, b.each, len(b.subset or range(b.logits)), b.part) == (
        folder, images, each, classes, part,
    )  # fmt: skip


def test_the_subset_of_a_and_that_of_r_are_not_exchanged():
    assert (benchmark("a").subset, benchmark("r").subset) == (IMAGENET_A, IMAGENET_R)
