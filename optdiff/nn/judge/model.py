"""The judge: a small classifier that says which digit an image shows, in which ink, on what paper.

It scores generators that never saw it, and its features are what distances between sets of images
are measured on. This file owns its geometry and its network; no other library knows either, so the
names of its weights are its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from optdiff.nn import fields
from optdiff.nn.abstract import abstract
from optdiff.nn.fields import COUNT, field, several
from optdiff.nn.layers import Conv, Dtype, GroupNorm
from optdiff.nn.linear import Linear

CLASS_NAME = "DigitJudge"
GROUPS = 8  # of channels that are normed together


@dataclass(frozen=True)
class JudgeConfig:
    """The geometry of a judge: what `config.json` beside its weights says.

    Attributes:
      widths: channels of the stages; each but the first halves the image.
      features: size of the vector that everything is read from.
      answers: how many there are to each question: which digit, ink, paper.
      side: pixels of the images that it learnt from; others are refused.
    """

    widths: tuple[int, ...] = field((24, 48, 96, 96), several(COUNT))
    features: int = field(64, COUNT)
    answers: tuple[int, int, int] = field((10, 8, 8), several(COUNT))
    side: int = field(32, COUNT)

    def __post_init__(self):
        fields.check(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "JudgeConfig":
        """Read a parsed `config.json`.

        Raises:
          ValueError: naming every field that is not known or holds what it may not.
        """
        return fields.read(cls, raw, {})

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says: `from_dict` of it is this config."""
        return {"_class_name": CLASS_NAME, **fields.written(self)}

    @staticmethod
    def misfits(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields that do not fit together, each with what it must be."""
        if any(width % GROUPS for width in values["widths"]):
            yield "widths", f"must be multiples of {GROUPS}"
        if len(values["answers"]) != 3:
            yield "answers", "must have 3 entries: digits, inks, papers"

    @property
    def least_tensors(self) -> int:
        """A bound from below on how many tensors hold the weights."""
        return len(self.widths)


def names(config: JudgeConfig) -> dict[str, tuple[str, str]]:
    """Every parameter of `Judge(config)` under its own name, as it lies in memory."""
    params = nnx.to_flat_state(
        nnx.state(abstract(lambda rngs: Judge(config, rngs=rngs)), nnx.Param)
    )
    return {path: (path, "same") for path in (".".join(map(str, path)) for path, _ in params)}


class Verdict(NamedTuple):
    """Logits of each answer, (b, answers), and the features that they were read from."""

    digit: Float[Array, "b d"]
    ink: Float[Array, "b i"]
    paper: Float[Array, "b p"]
    features: Float[Array, "b f"]


class Judge(nnx.Module):
    """Convolutions with group norm, two to a stage, then features and three linear readings.

    Args:
      config: the geometry.
      rngs: random keys for the initial parameters.
      param_dtype: what to store and compute in.

    >>> judge = Judge(JudgeConfig(widths=(8, 8)), rngs=nnx.Rngs(0))
    >>> judge(jnp.zeros((2, 32, 32, 3))).digit.shape
    (2, 10)
    """

    def __init__(self, config: JudgeConfig, *, rngs: nnx.Rngs, param_dtype: Dtype = jnp.float32):
        types: dict[str, Any] = {"dtype": param_dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        convs, width = [], 3
        for stage, out in enumerate(config.widths):
            stride = 1 if stage == 0 else 2
            convs += [Conv(width, out, 3, stride=stride, **types), Conv(out, out, 3, **types)]
            width = out
        self.convs = nnx.List(convs)
        self.norms = nnx.List(
            GroupNorm(w, groups=GROUPS, eps=1e-5, param_dtype=param_dtype)
            for w in config.widths
            for _ in range(2)
        )
        places = (config.side // 2 ** (len(config.widths) - 1)) ** 2
        self.to_features = Linear(places * width, config.features, **types)
        self.readings = nnx.List(Linear(config.features, n, **types) for n in config.answers)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Verdict:
        """Judge images (b, side, side, 3) in [0, 1].

        Raises:
          ValueError: for images of another size.
        """
        side = self.config.side
        if images.shape[1:3] != (side, side):
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]}, but this judge learnt from "
                f"{side}x{side}"
            )
        x = 2.0 * images - 1.0
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.silu(norm(conv(x)))
        features = self.to_features(x.reshape(len(x), -1))
        hidden = nnx.silu(features)
        return Verdict(*(reading(hidden) for reading in self.readings), features)
