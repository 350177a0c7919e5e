"""The 200-class subsets and ObjectNet's map."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from withstand.data.folders import wnids
from withstand.data.shift.classes import IMAGENET_A, IMAGENET_R, OBJECTNET, OBJECTNET_FOLDERS


def test_the_subsets_have_200_classes_in_rising_order_and_share_86():
    for subset in (IMAGENET_A, IMAGENET_R):
        assert len(subset) == 200
        assert list(subset) == sorted(set(subset))
        assert subset[0] >= 0
        assert subset[-1] <= 999
    assert len(set(IMAGENET_A) & set(IMAGENET_R)) == 86


def test_125_labels_map_to_113_of_313_objectnet_folders():
    assert len(OBJECTNET) == 125
    assert len(set(OBJECTNET.values())) == 113
    assert set(OBJECTNET) <= set(range(1000))
    assert set(OBJECTNET.values()) <= set(range(OBJECTNET_FOLDERS))


@pytest.mark.parametrize(("name", "subset"), [("a", IMAGENET_A), ("r", IMAGENET_R)])
def test_timm_has_the_same_subsets(name, subset):
    there = Path(find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    if not (there / f"imagenet_{name}_indices.txt").is_file():
        pytest.skip("this timm has no such table")
    assert [int(n) for n in (there / f"imagenet_{name}_indices.txt").read_text().split()] == list(subset)
    assert (there / f"imagenet_{name}_synsets.txt").read_text().split() == [wnids()[label] for label in subset]


def test_labels_are_positions_in_the_sorted_list_of_wordnet_ids():
    assert len(wnids()) == 1000
    assert wnids() == sorted(wnids())
    assert (wnids()[0], wnids()[999]) == ("n01440764", "n15075141")


def test_timm_says_the_same_itself():
    from timm.data import ImageNetInfo

    assert wnids() == list(ImageNetInfo("imagenet-1k").label_names())
