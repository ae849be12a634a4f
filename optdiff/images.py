"""Images in files: PNGs that remember how they were made, grids of pictures, images read in.

This file owns pixels and the text in PNG files. What the text says is its writer's business.
"""

import bisect
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

NOTE = "optdiff"
"""The keyword of our text chunk in a PNG."""

GAP, LEGIBLE = 8, 192
"""On sheets, pixels between pictures; and the least width of one, which has words above it."""

Pixels = UInt8[np.ndarray, "h w 3"]


def to_pixels(images: Float[Array | np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Images in [0, 1] as bytes, rounded.

    Raises:
      FloatingPointError: if one is not finite, which as bytes would be black.

    >>> to_pixels(np.full((1, 1, 1, 3), 0.5)).ravel().tolist()
    [128, 128, 128]
    """
    images = np.asarray(images, np.float32)
    if broken := [i for i, image in enumerate(images) if not np.isfinite(image).all()]:
        raise FloatingPointError(f"{len(broken)} of {len(images)} images, decoded, are not finite")
    return np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def tile(
    pictures: UInt8[np.ndarray, "b h w 3"], columns: int
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pictures side by side, row after row, white where the last row is short.

    >>> tile(np.zeros((3, 4, 5, 3), np.uint8), columns=2).shape
    (8, 10, 3)
    """
    count, h, w, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, h, w, 3), 255, np.uint8)
    sheet[:count] = pictures
    return sheet.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)


def sheet(
    pictures: UInt8[np.ndarray, "b h w 3"], *, columns: Sequence[str], rows: Sequence[str]
) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures in reading order with gaps between them, a head above each column and words above
    each row; small ones enlarged by a whole number.

    Words are literal: no markup, up to four lines of them, and by their escapes control characters
    and those that the font lacks, such as Chinese.

    >>> sheet(np.zeros((2, 256, 256, 3), np.uint8), columns=["a", "b"], rows=["$1"]).shape[1]
    536
    """
    times = -(-LEGIBLE // pictures.shape[2])
    pictures = pictures.repeat(times, axis=1).repeat(times, axis=2)
    h, w = pictures.shape[1:3]
    font = _font(max(14, w // 24))
    line = sum(font.getmetrics())
    width = GAP + len(columns) * (w + GAP)
    above = [_lines(words, font, width - 2 * GAP, most=4) for words in rows]
    heads = line * any(columns)
    height = GAP + heads + sum(line * len(lines) + h + 2 * GAP for lines in above)
    whole = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(whole), GAP + heads
    for column, words in enumerate(columns):
        place = GAP + column * (w + GAP), GAP
        draw.text(place, "".join(_lines(words, font, w, most=1)), "dimgray", font)
    for row, lines in enumerate(above):
        for words in lines:
            draw.text((GAP, y), words, "black", font)
            y += line
        for column, picture in enumerate(pictures[row * len(columns) :][: len(columns)]):
            whole.paste(Image.fromarray(picture), (GAP + column * (w + GAP), y + GAP // 2))
        y += h + 2 * GAP
    return np.asarray(whole)


def _lines(words: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Words on lines that fit, broken between them where that can be."""
    known = _letters()
    shown = (c if c.isprintable() and ord(c) in known else ascii(c)[1:-1] for c in words[:2000])
    rest = "".join(shown)
    lines = []
    while rest and len(lines) < most:
        fits = bisect.bisect_right(
            range(1, len(rest) + 1), width, key=lambda n: font.getlength(rest[:n])
        )
        space = rest.rfind(" ", 0, fits + 1)
        end = len(rest) if fits == len(rest) else space if space > 0 else max(1, fits)
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = lines[-1][:-1] + "…"
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(), size)


@functools.cache
def _letters() -> frozenset[int]:
    """The characters that the font can draw; it draws all others as one and the same box."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file()).get_charmap())


def _font_file() -> str:
    """Matplotlib's, which is there wherever figures are drawn and has most alphabets."""
    from matplotlib import get_data_path

    return str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"))


def write_png(path: str | Path, pixels: Pixels, note: Any = None) -> None:
    """Write a PNG with a note in it.

    Args:
      path: where nothing is yet.
      pixels: the picture.
      note: anything JSON can say, for `read_note`.

    Raises:
      FileExistsError: if something is there.

    >>> write_png("cube.png", np.zeros((8, 8, 3), np.uint8), {"seed": 1})  # doctest: +SKIP
    """
    chunks = PngInfo()
    if note is not None:
        chunks.add_text(NOTE, json.dumps(note))
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, "PNG", pnginfo=chunks)
    with open(path, "xb") as file:
        file.write(whole.getvalue())


def read_note(path: str | Path) -> Any:
    """The note that `write_png` left in a PNG.

    Raises:
      ValueError: if it holds none.
    """
    text = getattr(_open(path), "text", {}).get(NOTE)
    if text is None:
        raise ValueError(f"{path}: this image does not say how it was made")
    return json.loads(text)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file as it is seen, in pixels."""
    width, height = ImageOps.exif_transpose(_open(path)).size
    return height, width


def read_image(path: str | Path, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """An image in [0, 1] as `upright` has it, resized to (height, width) with Lanczos.

    Raises:
      ValueError: if the file is not an image, or as for `upright`.
    """
    flat = upright(_open(path))
    height, width = size
    resized = flat.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / 255.0


def upright(image: Image.Image) -> Image.Image:
    """An opened image as it is meant to be seen: as its camera was held, RGB on white, and 8 bits a
    channel. Whoever reads images here reads them by this.

    Raises:
      ValueError: for numbers of which none is known to be white: fractions, or such as 16 bits do
        not hold.

    >>> upright(Image.new("LA", (4, 3), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel: Pillow clips finer grey, where of finer colours it takes the
    upper 8 bits, as is done here.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    grey = np.asarray(image)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError(
            f"grey from {grey.min()} to {grey.max()} (mode {image.mode}), of which none is known "
            "to be white; save it with 8 or 16 bits"
        )
    if "transparency" in image.info:  # one shade of a PNG, too fine for 8 bits
        grey = np.where(grey == image.info["transparency"], 0xFFFF, grey)
    return Image.fromarray((grey >> 8).astype(np.uint8))


def _open(path: str | Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path}: not an image") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
    return image
