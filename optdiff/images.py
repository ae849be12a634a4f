"""Images in files: PNGs that remember how they were made, grids of pictures, images read in.

This file owns pixels and the text in PNG files. What the text says is its writer's business.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

NOTE = "optdiff"
"""The keyword of our text chunk in a PNG."""

Pixels = UInt8[np.ndarray, "h w 3"]


def to_pixels(images: Float[Array | np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Images in [0, 1] as bytes, rounded.

    >>> to_pixels(np.full((1, 1, 1, 3), 0.5)).ravel().tolist()
    [128, 128, 128]
    """
    return np.round(np.clip(np.asarray(images, np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)


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
    """Height and width of an image file, in pixels."""
    width, height = _open(path).size
    return height, width


def read_image(path: str | Path, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """An image in [0, 1], resized to (height, width) with Lanczos; transparency becomes white.

    Raises:
      ValueError: if the file is not an image.
    """
    image = _open(path).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(ground, image).convert("RGB")
    height, width = size
    resized = flat.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / 255.0


def _open(path: str | Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path}: not an image") from error
    return image
