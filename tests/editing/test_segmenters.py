"""Networks as segmenters: what is taken of their output, and loading them without a download."""

import pytest
import torch
from torch import nn

from withstand.editing import ObjectEditor
from withstand.editing.masks import GrabCut
from withstand.editing.segmenters import ByClasses, ByInstances, ByProcessor, load_segmenter
from withstand.errors import BadInput


class Painted(nn.Module):
    """Returns fixed scores, and keeps what it was given."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x):
        self.seen = x
        return self.out


def scores_of(classes, k):
    return 9.0 * nn.functional.one_hot(classes, k).permute(2, 0, 1)[None].float()


@pytest.fixture
def classes():
    made = torch.zeros(20, 30, dtype=torch.long)
    made[2:8, 2:8] = 1  # 36 pixels and 40 more elsewhere
    made[10:20, 20:24] = 1
    made[2:9, 12:19] = 2  # 49 pixels
    return made


def test_the_largest_part_of_one_class_or_all_of_a_class_is_the_object(classes):
    image = torch.rand(3, 20, 30)
    for out in (scores_of(classes, 3), {"out": scores_of(classes, 3)}, {"logits": scores_of(classes, 3)}):
        assert torch.equal(ByClasses(Painted(out))(image), classes == 2)
    assert torch.equal(ByClasses(Painted(scores_of(classes, 3)), wanted=1)(image), classes == 1)
    assert torch.equal(ByClasses(Painted(scores_of(classes, 3)), background=2)(image), classes == 0)
    assert not ByClasses(Painted(scores_of(classes * 0, 3)))(image).any()


def test_images_are_normalised_and_scores_brought_to_their_size(classes):
    net = Painted(scores_of(classes, 3))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (mean + std)[:, None, None].expand(3, 40, 60)
    mask = ByClasses(net)(image)
    assert mask.shape == (40, 60)
    torch.testing.assert_close(net.seen, torch.ones(1, 3, 40, 60))
    assert (mask & (classes == 2).repeat_interleave(2, 0).repeat_interleave(2, 1)).sum() > 0.9 * 4 * 49


def test_instances_count_by_score_size_and_class():
    masks = torch.zeros(3, 1, 10, 10)
    masks[0, 0, :5, :5], masks[1, 0, :, :8], masks[2, 0, 6:, 6:] = 0.9, 0.9, 0.6
    found = {"masks": masks, "scores": torch.tensor([0.9, 0.4, 0.5]), "labels": torch.tensor([3, 3, 7])}
    image = torch.rand(3, 10, 10)
    assert torch.equal(ByInstances(Painted([found]))(image), masks[0, 0] > 0.5)
    assert torch.equal(ByInstances(Painted([found]), wanted=7)(image), masks[2, 0] > 0.5)
    assert not ByInstances(Painted([found]), wanted=8)(image).any()


def test_a_network_of_torchvision_loads_from_a_file(tmp_path):
    from torchvision.models import get_model

    torch.manual_seed(0)
    net = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4).eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    found = load_segmenter("torchvision:lraspp_mobilenet_v3_large", tmp_path / "net.pt", wanted="2")
    image = torch.rand(3, 40, 56)
    assert torch.equal(found(image), ByClasses(net, 2)(image))
    ObjectEditor(segmenter=found).edit(image)  # does not fail, whatever it finds


def test_a_model_of_transformers_loads_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[4, 4, 8, 8],
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        id2label={0: "background", 1: "cat", 2: "dog"},
    )
    torch.manual_seed(0)
    net = transformers.SegformerForSemanticSegmentation(config).eval()
    net.save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    image = torch.rand(3, 30, 44)
    found = load_segmenter(f"transformers:{tmp_path}", wanted="dog")
    assert isinstance(found, ByProcessor)
    assert (found.wanted, found.background) == (2, 0)
    masks = [load_segmenter(f"transformers:{tmp_path}", wanted=k)(image) for k in (0, 1, 2)]
    assert torch.equal(sum(m.int() for m in masks), torch.ones(30, 44, dtype=torch.int))
    assert torch.equal(found(image), masks[2])
    with pytest.raises(BadInput, match="Did you mean dog"):
        load_segmenter(f"transformers:{tmp_path}", wanted="dogs")


def test_a_factory_of_a_file_gives_any_callable(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def red():\n    return lambda image: image[0] > 0.5\ndef three():\n    return 3\n"
    )
    found = load_segmenter(f"{tmp_path / 'mine.py'}:red")
    assert torch.equal(found(torch.ones(3, 4, 4)), torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(BadInput, match="image -> mask"):
        load_segmenter(f"{tmp_path / 'mine.py'}:three")
    assert load_segmenter("grabcut") == GrabCut()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"spec": "grabcuts"}, "torchvision:NAME"),
        ({"spec": "torchvision:deeplabv3_resnet5", "weights": "x.pt"}, "Did you mean deeplabv3_resnet50"),
        ({"spec": "torchvision:deeplabv3_resnet50"}, "a file of weights"),
        ({"spec": "torchvision:deeplabv3_resnet50", "weights": "x.pt", "wanted": "dog"}, "number of a class"),
        ({"spec": "transformers:/no/where"}, "folder of a saved model"),
        ({"spec": "grabcut", "weights": "x.pt"}, "Only torchvision"),
        ({"spec": "grabcut", "wanted": "dog"}, "knows no classes"),
    ],
)
def test_what_names_no_segmenter_is_refused(given, said):
    with pytest.raises(BadInput, match=said):
        load_segmenter(**given)
