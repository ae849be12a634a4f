"""Images in files: what is written is read back, and nothing is written over."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from optdiff.data.image_text import decode
from optdiff.images import image_size, read_image, read_note, sheet, tile, to_pixels, write_png

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
NOTE = {"prompt": 'a "cube", ü 🚀\n${x}', "seed": 2**40, "guidance": [1.5, None]}


def test_a_png_keeps_its_pixels_and_its_note(tmp_path):
    write_png(tmp_path / "a.png", PIXELS[0], NOTE)
    assert read_note(tmp_path / "a.png") == NOTE
    assert image_size(tmp_path / "a.png") == (4, 5)
    back = read_image(tmp_path / "a.png", (4, 5))
    np.testing.assert_array_equal(to_pixels(back[None])[0], PIXELS[0])


def test_nothing_is_written_over(tmp_path):
    write_png(tmp_path / "a.png", PIXELS[0])
    with pytest.raises(FileExistsError):
        write_png(tmp_path / "a.png", PIXELS[1])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), PIXELS[0])


@pytest.mark.parametrize("columns", [1, 2, 4, 6])
def test_tiles_lie_in_reading_order(columns):
    sheet = tile(PIXELS, columns)
    for i, picture in enumerate(PIXELS):
        y, x = 4 * (i // columns), 5 * (i % columns)
        np.testing.assert_array_equal(sheet[y : y + 4, x : x + 5], picture)
    if columns == 4:
        assert (sheet[4:, 10:] == 255).all()


def test_images_of_all_kinds_are_read_as_colours(tmp_path):
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:, 4:] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(clear[..., 3]).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "clear.png", (8, 8)) == 1).all()
    grey = read_image(tmp_path / "grey.png", (16, 24))
    assert grey.shape == (16, 24, 3) and grey[0, 0, 0] == 0 and grey[0, -1, 2] == 1


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_images_stand_as_pillow_turns_them_and_fine_grey_is_grey(tmp_path, mode, turn):
    """All eight orientations, whose meaning is Pillow's; for both readers, generate.py's and that
    of training data."""
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    image, exif = Image.fromarray(pixels).convert("RGB" if mode == "RGB" else "L"), Image.Exif()
    exif[0x0112] = turn
    fine = Image.fromarray(pixels.astype(np.uint16) * 256) if mode == "I;16" else image
    fine.save(tmp_path / "a.png", exif=exif)
    image.save(tmp_path / "coarse.png", exif=exif)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "coarse.png")).convert("RGB"))
    assert image_size(tmp_path / "a.png") == seen.shape[:2]
    ours = to_pixels(read_image(tmp_path / "a.png", seen.shape[:2])[None])[0]
    np.testing.assert_array_equal(ours, seen)
    h, w = seen.shape[:2]
    middle = seen[(h - 4) // 2 : (h + 4) // 2, (w - 4) // 2 : (w + 4) // 2]
    np.testing.assert_array_equal(decode((tmp_path / "a.png").read_bytes(), 4), middle)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "CMYK", "1", "YCbCr"])
def test_kinds_of_colour_are_those_of_pillow(tmp_path, mode):
    image = Image.fromarray(np.full((4, 4, 3), (200, 100, 50), np.uint8)).convert(mode)
    image.save(tmp_path / "a.tiff")
    ours = to_pixels(read_image(tmp_path / "a.tiff", (4, 4))[None])[0]
    np.testing.assert_array_equal(ours, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_picture(broken):
    images = np.zeros((3, 2, 2, 3), np.float32)
    images[1, 0, 0, 0] = broken
    with pytest.raises(FloatingPointError, match="1 of 3 images, decoded, are not finite"):
        to_pixels(images)


@pytest.mark.parametrize(
    "words",
    ["$5 off $10", "\x1b[31m\x07\n", "猫 кот ü 🚀", "x" * 5000, "<b>&amp;</b>", "\ud800", ""],
)
def test_sheets_bear_any_words(words):
    """Pictures lie where they should, whatever is written; for words there is room in height."""
    pictures = np.full((4, 200, 200, 3), 77, np.uint8)
    whole = sheet(pictures, columns=[words, "b"], rows=["one", words])
    assert whole.shape[1] == 2 * 200 + 3 * 8 and whole.shape[0] < 2 * 200 + 220
    assert (whole[-12 - 200 : -12, 8:208] == 77).all() and (whole == 77).all(-1).sum() >= 160_000
    assert (whole[:, 208:216] == 255).all(-1).any() and (whole[:8] == 255).all()


def test_letters_that_the_font_lacks_are_told_apart():
    """They would all be the same box; others stand as they are."""
    drawn = [
        sheet(PIXELS[:1], columns=[""], rows=[words]) for words in ("七", r"\u4e03", "八", "é")
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert (drawn[3] != sheet(PIXELS[:1], columns=[""], rows=[r"\xe9"])).any()


def test_what_is_no_image_or_says_nothing_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    write_png(tmp_path / "silent.png", PIXELS[0])
    with pytest.raises(ValueError, match=r"text\.png: not an image"):
        read_image(tmp_path / "text.png", (8, 8))
    with pytest.raises(ValueError, match=r"silent\.png: this image does not say"):
        read_note(tmp_path / "silent.png")
