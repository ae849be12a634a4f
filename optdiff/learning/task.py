"""What it takes to learn a network: where it starts, what it minimizes, what it learns from.

This file owns the type that the networks' own files fill in and `loop.py` runs. It imports nothing
of optdiff but the types.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PyTree

from optdiff.types import Batch, Stream

Loss = Callable[[PyTree, PyTree, Batch, Array], tuple[Float[Array, ""], dict[str, Array]]]
"""`loss(params, frozen, batch, key) -> (loss, what else to watch)`."""


class Task(NamedTuple):
    """A network to learn, as data.

    Attributes:
      params: where it starts, a pytree of float arrays; what is learned.
      frozen: what it needs and does not change, such as the networks learned before it.
      loss: see `Loss`.
      stream: what it learns from.
      scores: how good parameters are, on what nothing learns from, by column name.
      pictures: images (b, h, w, 3) in [0, 1] that show what parameters do.
      save: writes finished parameters as a folder that `optdiff.nn.checkpoint` reads.
    """

    params: PyTree
    frozen: PyTree
    loss: Loss
    stream: Stream
    scores: Callable[[PyTree], dict[str, float]]
    pictures: Callable[[PyTree], Any] | None
    save: Callable[[PyTree, Path], None]
