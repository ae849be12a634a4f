"""Captioned handwritten digits: real strokes in colour on a canvas, endless, a function of the key.

This file owns what a picture shows (its attributes), which strokes and which combinations are kept
for whom, and how a picture is drawn. What is said of it is in `captions.py`; both together as a
stream to learn from in `caption_stream.py`.
"""

from functools import lru_cache, partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optdiff.data.digits import digits
from optdiff.types import Keys

COLOURS = {
    "black": (0.06, 0.06, 0.07),
    "white": (0.95, 0.95, 0.94),
    "red": (0.84, 0.13, 0.14),
    "green": (0.13, 0.58, 0.24),
    "blue": (0.14, 0.29, 0.84),
    "yellow": (0.97, 0.87, 0.20),
    "purple": (0.56, 0.21, 0.70),
    "orange": (0.95, 0.52, 0.11),
}
"""The colours of inks and papers, RGB in [0, 1]; an attribute is a place in this order."""

SIZES = ("small", "medium", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")

SIDE = 32
"""Pixels of a canvas' side, by default."""

# Of a canvas of 32: the scale of the 28 x 28 strokes, and how far from its middle they may lie.
_SCALE, _OFFSET = (0.72, 0.95, 1.2), (6.0, 3.5, 1.0)
# What no caption tells: rotation (radians), shear, scale, place (of a canvas of 32), shade.
_ROTATION, _SHEAR, _STRETCH, _SHIFT, _SHADE = 0.2, 0.15, 0.08, 0.5, 0.03
_GAIN = 1.4  # scanned ink is thin and pale when it is drawn small

Who = Literal["generator", "judge", "held_out"]
"""Whose strokes: those that images are learnt from, those that the judge learns from, and those
that neither ever sees."""


class Attributes(NamedTuple):
    """What a picture shows: the digit, and places in `COLOURS` (twice), `SIZES`, `ROWS`, `COLUMNS`.

    Each is () for one picture or (b,) for several.
    """

    digit: Int[Array | np.ndarray, "..."]
    ink: Int[Array | np.ndarray, "..."]
    paper: Int[Array | np.ndarray, "..."]
    size: Int[Array | np.ndarray, "..."]
    row: Int[Array | np.ndarray, "..."]
    column: Int[Array | np.ndarray, "..."]


@lru_cache
def strokes(who: Who) -> Float[np.ndarray, "10 n 28 28"]:
    """Scanned digits as ink in [0, 1], (10, n, 28, 28); no digit in two sets.

    Raises:
      ValueError: if it is none of them.

    >>> [strokes(who).shape[1] for who in ("generator", "judge", "held_out")]
    [200, 200, 100]
    """
    if who not in get_args(Who):
        raise ValueError(f"there are strokes of {', '.join(get_args(Who))}, not of {who!r}")
    train, held_out = digits()
    images, labels = held_out if who == "held_out" else train
    by_kind = np.stack([images[labels == kind] for kind in range(10)]) / 2.0 + 0.5
    if who == "held_out":
        return by_kind
    return by_kind[:, ("generator", "judge").index(who) :: 2]


@lru_cache
def combinations(held_out: bool) -> Int[np.ndarray, "n 3"]:
    """The (digit, ink, paper) that are learnt, or the tenth of them that is held out.

    Ink and paper differ. Every digit and every pair of colours is learnt, the held-out ones in
    other company: what a generator makes of those shows whether it composes or remembers.

    >>> len(combinations(False)), len(combinations(True))
    (504, 56)
    """
    pairs = [(i, p) for i in range(len(COLOURS)) for p in range(len(COLOURS)) if i != p]
    return np.array(
        [
            (digit, *pair)
            for digit in range(10)
            for place, pair in enumerate(pairs)
            if ((place + 3 * digit) % 10 == 0) == held_out
        ]
    )


@partial(jax.jit, static_argnames="held_out")
def draw(keys: Keys, held_out: bool = False, colours: Keys | None = None) -> Attributes:
    """Attributes of a picture for each key, each combination as likely as the next.

    Args:
      keys: (b,).
      held_out: draw from the combinations that nothing learns from.
      colours: (b,). Those whose key is the same share ink and paper. By default, nobody shares.

    Returns:
      Attributes of (b,) integers.

    >>> draw(jax.random.split(jax.random.key(0), 4)).digit.shape
    (4,)
    """
    table = jnp.asarray(combinations(held_out))

    def combination(which):
        return table[jax.random.randint(which, (), 0, len(table))]

    def one(key, colour):
        which, size, row, column = jax.random.split(key, 4)
        digit, ink, paper = combination(which)
        if colour is not None:
            _, ink, paper = combination(jax.random.split(colour, 4)[0])
            fit = (table[:, 1] == ink) & (table[:, 2] == paper)
            # The key of the colours may be one's own, and has drawn from `which` already.
            nth = jax.random.randint(jax.random.fold_in(which, 1), (), 0, fit.sum())
            digit = table[jnp.argmax(jnp.cumsum(fit) > nth), 0]
        place = [jax.random.randint(k, (), 0, 3) for k in (size, row, column)]
        return Attributes(digit, ink, paper, *place)

    return jax.vmap(one, (0, None if colours is None else 0))(keys, colours)


@partial(jax.jit, static_argnames="side")
def render(
    keys: Keys, attributes: Attributes, strokes: Float[Array, "10 n 28 28"], side: int = SIDE
) -> Float[Array, "b side side 3"]:
    """Draw pictures: `paper + ink_cover (ink - paper)`, the cover a stroke under an affine map.

    The key chooses the stroke, and what no caption tells: a slight rotation, shear, stretch and
    shift, and the shade of both colours.

    Args:
      keys: (b,).
      attributes: of (b,).
      strokes: whose, from `strokes`.
      side: height and width in pixels.

    Returns:
      (b, side, side, 3) in [0, 1].

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> render(keys, draw(keys), jnp.asarray(strokes("generator"))).shape
    (2, 32, 32, 3)
    """
    palette = jnp.asarray(list(COLOURS.values()), strokes.dtype)
    middle = (jnp.arange(side) + 0.5) * (SIDE / side) - SIDE / 2  # pixels, from the canvas' middle

    def one(key, about: Attributes):
        stroke_key, warp_key, shade_key = jax.random.split(key, 3)
        which = jax.random.randint(stroke_key, (), 0, strokes.shape[1])
        turn, shear, stretch, *shift = jax.random.uniform(warp_key, (5,), minval=-1.0)
        scale = jnp.asarray(_SCALE)[about.size] * (1.0 + _STRETCH * stretch)
        sine, cosine = jnp.sin(_ROTATION * turn), jnp.cos(_ROTATION * turn)
        away = jnp.asarray(_OFFSET)[about.size]
        down = middle - away * (about.row - 1) - _SHIFT * shift[0]
        right = middle - away * (about.column - 1) - _SHIFT * shift[1]
        y = (cosine * down[:, None] - sine * right[None]) / scale
        x = (sine * down[:, None] + cosine * right[None]) / scale + _SHEAR * shear * y
        places = [y + 13.5, x + 13.5]  # where in the stroke each pixel of the canvas lies
        cover = jax.scipy.ndimage.map_coordinates(strokes[about.digit, which], places, order=1)
        shade = _SHADE * jax.random.normal(shade_key, (2, 3), strokes.dtype)
        ink, paper = jnp.clip(palette[jnp.stack([about.ink, about.paper])] + shade, 0.0, 1.0)
        cover = jnp.clip(_GAIN * cover, 0.0, 1.0)[..., None]
        return paper[None, None] + cover * (ink - paper)[None, None]

    return jax.vmap(one)(keys, attributes).astype(strokes.dtype)
