"""Files of every kind: converted with a note, or refused by name before anything is written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import withstand as ws
from tests.editing.pictures import photo
from withstand.errors import BadInput

MODES = {
    "grey.png": (lambda im: im.convert("L"), {}, "grey made RGB"),
    "bits.png": (lambda im: im.convert("1"), {}, "grey made RGB"),
    "cmyk.jpg": (lambda im: im.convert("CMYK"), {}, "CMYK made RGB"),
    "palette.png": (lambda im: im.convert("P"), {}, "palette made RGB"),
    "alpha.png": (lambda im: im.convert("RGBA"), {}, "transparency left out"),
    "plain.webp": (lambda im: im, {"lossless": True}, ""),
}


@pytest.mark.parametrize("name", MODES)
def test_other_kinds_of_pictures_are_converted_with_a_note(tmp_path, name):
    change, options, note = MODES[name]
    image, mask = photo(0)
    change(image).save(tmp_path / name, **options)
    mask.save(tmp_path / "mask.png")
    (row,) = ws.edit(tmp_path / name, tmp_path / "out", masks=tmp_path / "mask.png", size=0.05)
    assert row["notes"] == note
    assert not row["skipped"]
    made = Image.open(tmp_path / "out" / "images" / Path(name).with_suffix(".png"))
    assert (made.mode, made.size) == ("RGB", (64, 48))


@pytest.mark.parametrize("tag", range(2, 9))
def test_pictures_that_lie_on_their_side_are_turned_upright_with_a_note(tmp_path, tag):
    image, mask = photo(0)
    exif = Image.Exif()
    exif[0x0112] = tag
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[tag]  # what undoes it, as a Transpose
    stored = image.transpose(Image.Transpose(back))
    stored.save(tmp_path / "side.png", exif=exif)
    mask.save(tmp_path / "mask.png")
    (row,) = ws.edit(tmp_path / "side.png", tmp_path / "out", masks=tmp_path / "mask.png", background="plain:0")
    assert row["notes"] == "turned upright, as its EXIF tag says"
    made, where = np.asarray(Image.open(tmp_path / "out" / "images" / "side.png")), np.asarray(mask) > 127
    assert np.array_equal(made[where], np.asarray(image)[where])
    if tag >= 5:
        mask.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "mask.png")
        with pytest.raises(BadInput, match="64 x 48 pixels; allowed: 48 x 64"):
            ws.edit(tmp_path / "side.png", tmp_path / "no", masks=tmp_path / "mask.png", size=0.05)


def deep_grey(file):
    Image.fromarray(np.full((48, 64), 40000, np.uint16)).save(file)


def deep_colour(file):
    import cv2

    cv2.imwrite(str(file), np.full((48, 64, 3), 40000, np.uint16))


def animated(file):
    photo(0)[0].save(file, format="GIF", save_all=True, append_images=[photo(1)[0]])


def deep_pixmap(file):
    file.write_bytes(b"P6 64 48 65535\n" + bytes(64 * 48 * 6))


def corrupted(file):
    photo(0)[0].save(file, format="PNG")
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 255
    file.write_bytes(held)


def truncated(file):
    photo(0)[0].save(file, format="PNG")
    file.write_bytes(file.read_bytes()[:-400])


def text(file):
    file.write_text("no picture")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (deep_grey, "more than 8 bits"),
        (deep_colour, "more than 8 bits"),
        (deep_pixmap, "more than 8 bits"),
        (animated, "an animation of 2 frames"),
        (corrupted, "damaged or truncated"),
        (truncated, "damaged or truncated"),
        (text, "not an image"),
    ],
)
def test_files_that_cannot_be_edited_are_refused_by_name_before_any_work(folder, make, said):
    make(folder / "photos" / "dog" / "bad.png")
    with pytest.raises(BadInput, match=rf"bad\.png.*{said}"):
        ws.edit(folder / "photos", folder / "out", size=0.05)
    assert not (folder / "out").exists()


def test_masks_that_do_not_belong_are_refused_by_name_before_any_work(folder):
    given = {"masks": folder / "masks", "size": 0.05}
    (folder / "masks" / "dog" / "c.png").rename(folder / "masks" / "dog" / "x.png")
    with pytest.raises(BadInput, match=r"without a mask for dog/c\.png"):
        ws.edit(folder / "photos", folder / "out", **given)
    Image.new("L", (64, 47), 255).save(folder / "masks" / "dog" / "c.png")
    with pytest.raises(BadInput, match=r"c\.png: got 47 x 64 pixels; allowed: 48 x 64 pixels"):
        ws.edit(folder / "photos", folder / "out", **given)
    Image.new("L", (64, 48), 255).save(folder / "masks" / "dog" / "c.png")
    Image.new("L", (64, 48), 127).save(folder / "masks" / "dog" / "d.png")
    rows = ws.edit(folder / "photos", folder / "out", **given)
    assert [(r["file"], r["reason"].split(":")[0]) for r in rows if r["skipped"]] == [
        ("dog/c.png", "the mask is full"),
        ("dog/d.png", "the mask is empty"),
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda mask: mask.point(lambda v: v // 255), "0 and 1 as whole numbers"),
        (lambda mask: Image.merge("LA", [Image.new("L", mask.size, 255), mask]), "a mask with transparency"),
    ],
)
def test_masks_that_would_be_misread_are_refused_by_name_before_any_work(folder, make, said):
    file = folder / "masks" / "dog" / "d.png"
    make(Image.open(file)).save(file)
    with pytest.raises(BadInput, match=rf"d\.png: got .*{said}"):
        ws.edit(folder / "photos", folder / "out", masks=folder / "masks", size=0.05)
    assert not (folder / "out").exists()
    mask = photo(3)[1]
    Image.merge("LA", [mask, Image.new("L", mask.size, 255)]).save(file)  # nothing of it is transparent
    assert not any(r["skipped"] for r in ws.edit(folder / "photos", folder / "out", masks=folder / "masks", size=0.05))


@pytest.mark.parametrize(
    "tags",
    [b"\xff" * 30, b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0", b"II*\0\x08\0\0\0\xff\xff"],
    ids=["noise", "text", "cut"],
)
@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_tags_that_mean_nothing_turn_nothing(tmp_path, tags, ending):
    image, mask = photo(0)
    for held, name in ((image, f"a.{ending}"), (mask, f"mask.{ending}")):
        held.save(tmp_path / name, exif=b"Exif\0\0" + tags)
    (row,) = ws.edit(tmp_path / f"a.{ending}", tmp_path / "out", masks=tmp_path / f"mask.{ending}", size=0.05)
    assert not row["skipped"]
    assert row["notes"] == ""


def test_of_a_telephones_several_pictures_the_first_counts(tmp_path):
    image, mask = photo(0)
    image.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[image.resize((16, 12))], quality=95)
    mask.save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "phone.jpg").format == "MPO"
    (row,) = ws.edit(tmp_path / "phone.jpg", tmp_path / "out", masks=tmp_path / "mask.png", background="plain:0")
    assert row["notes"] == "the first picture of several in the file"
    assert Image.open(tmp_path / "out" / "images" / "phone.png").size == (64, 48)
