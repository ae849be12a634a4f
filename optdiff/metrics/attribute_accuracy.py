"""Attribute accuracy: do images show what their prompts say, in the eyes of a classifier?

The classifier must be one that the generator never saw, and learn from other examples. What it
answers on real images, its own ceiling, is the floor that is printed beside it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Samples, points

QUESTIONS = ("digit", "ink", "paper")


def attribute_accuracy(
    samples: Samples, cond: Mapping[str, Any], judge: Callable[[Samples], Any]
) -> dict[str, float]:
    """Share of samples whose digit, ink and paper are judged to be those of their prompts.

    The likeliest answer counts, `argmax_k logits_k`. A prompt that is silent about an attribute
    cannot be disobeyed in it: such samples do not count for that attribute, and for all three
    together an attribute left open is right.

    Args:
      samples: (b, ...) images.
      cond: `attributes`, what each shows, and `mentions`, which of these its prompt tells, both
        mappings from names to (b,) integers and booleans.
      judge: from images to logits, (b, answers) in attributes `digit`, `ink` and `paper`.

    Returns:
      "attribute_accuracy", all three right, then "digit_accuracy", "ink_accuracy" and
      "paper_accuracy", all in [0, 1]; one that no prompt tells is left out. More is better.

    Raises:
      ValueError: if some samples are not finite (it says how many), or counts disagree.

    >>> from types import SimpleNamespace
    >>> eye = lambda images: SimpleNamespace(digit=images, ink=images, paper=images)
    >>> asked = {name: np.array([0, 1]) for name in QUESTIONS}
    >>> mentions = {name: np.array([True, True]) for name in QUESTIONS}
    >>> cond = {"attributes": asked, "mentions": mentions}
    >>> attribute_accuracy(np.eye(2), cond, eye)["ink_accuracy"]
    1.0
    """
    points(samples)  # refuses broken samples: a judge answers to anything
    verdict, right, mentions = judge(samples), {}, {}
    for name in QUESTIONS:
        asked, mentions[name] = (
            np.asarray(cond[kind][name]) for kind in ("attributes", "mentions")
        )
        if asked.shape != (len(samples),):
            raise ValueError(f"{len(samples)} samples, but {asked.shape} conditions say {name}")
        right[name] = _answers(getattr(verdict, name)) == asked
    everything = np.all([right[name] | ~mentions[name] for name in QUESTIONS], axis=0)
    shares = {"attribute_accuracy": float(everything.mean())}
    for name in QUESTIONS:
        if mentions[name].any():
            shares[f"{name}_accuracy"] = float(right[name][mentions[name]].mean())
    return shares


def _answers(logits: Float[Array | np.ndarray, "b answers"]) -> np.ndarray:
    return np.asarray(logits).argmax(axis=1)
