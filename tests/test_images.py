"""Images in files: what is written is read back, and nothing is written over."""

import numpy as np
import pytest
from PIL import Image

from optdiff.images import image_size, read_image, read_note, tile, to_pixels, write_png

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


def test_what_is_no_image_or_says_nothing_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    write_png(tmp_path / "silent.png", PIXELS[0])
    with pytest.raises(ValueError, match=r"text\.png: not an image"):
        read_image(tmp_path / "text.png", (8, 8))
    with pytest.raises(ValueError, match=r"silent\.png: this image does not say"):
        read_note(tmp_path / "silent.png")
