"""Images in files: PNGs that remember how they were made, grids of pictures, images read in.

This file owns pixels and the text in PNG files. What the text says is its writer's business.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

NOTE = "optdiff"
"""The keyword of our text chunk in a PNG."""

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
