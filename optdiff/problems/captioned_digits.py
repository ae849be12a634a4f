"""Text to image on captioned digits: a model of our own, prompts of the grammar it learnt, a judge.

This file owns what a comparison on such a model needs beside the model: prompts whose attributes
are known, real images of the same attributes by strokes that nobody learnt from, and the networks
that say how well an image keeps to its prompt. The model itself is `text_to_image.py`'s.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff.data.captioned_digits import COLOURS, SIZES, Attributes, draw, render, strokes
from optdiff.data.captions import HELD_OUT, TRAINED, WORDS, captions, tells
from optdiff.denoisers import Guided
from optdiff.keys import COPY, checked_seed, seed_key
from optdiff.nn.checkpoint import Pipeline, load, load_module
from optdiff.nn.clip.images import to_clip
from optdiff.nn.clip.tokenizer import tokenize
from optdiff.nn.judge.model import Verdict
from optdiff.nn.network import Network, network
from optdiff.problems.stable_diffusion import from_pipeline, stable_diffusion
from optdiff.problems.text_to_image import TextToImage, drawn, in_batches
from optdiff.types import Cond, Keys, NoiseSchedule, Samples, Sigma

SHIPPED = Path(__file__).parents[1] / "pretrained" / "digits"
"""The model that comes with optdiff."""

LEARNT_PICTURES = 20_000
"""Pictures that stand for the training strokes: each some ten times, turned and sheared anew."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "text_encoder", "prompts", "strokes", "judging", "clip"],
    meta_fields=[],
)
@dataclass(frozen=True)
class CaptionedDigits:
    """Latent diffusion of captioned digits. Images are (b, 32, 32, 3) in [0, 1].

    A condition is a dict with the batch first: `context`, all that the network sees; `ids` of the
    prompt; `attributes`, a dict of integers (b,) that say what the image should show; `mentions`,
    which of them the prompt tells (booleans); `template`, by which it tells them (integers (b,)).

    Attributes:
      model: the network and the autoencoder.
      text_encoder: what the network is told by, from ids.
      prompts: the pool to draw from: a condition but for `context`, with the prompts first.
      strokes: (10, n, 28, 28), held out: what real images are drawn with.
      judging: a `Judge` that never saw what the model made.
      clip: a CLIP.
    """

    model: TextToImage
    text_encoder: Network
    prompts: Cond
    strokes: Float[Array, "10 n 28 28"]
    judging: Network
    clip: Network

    instruments = (  # what metrics may ask for, see `analysis.measuring`
        *("judge", "features", "agreement"),
        *("stroke_features", "learnt_strokes", "copies", "reconstructions"),
    )

    @property
    def schedule(self) -> NoiseSchedule:
        return self.model.schedule

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.model.size[0]

    def condition(self, keys: Keys) -> Cond:
        """One of the prompts for each sample, encoded."""
        return _conditions(self.text_encoder, self.prompts, keys)

    def words(self, cond: Cond) -> list[str]:
        """The prompts of conditions, as one would type them."""
        return captions(Attributes(**cond["attributes"]), cond["template"])

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        """As `TextToImage.prior`."""
        return self.model.prior(keys, sigma)

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Samples:
        """The network's estimate of the latents without noise, told by the context alone."""
        context = None if cond is None else {"context": cond["context"]}
        return self.model.denoise(x, sigma, context)

    def encode(self, images: Float[Array, "b h w c"]) -> Samples:
        """The likeliest latents of images."""
        return self.model.encode(images)

    def decode(self, x0: Samples) -> Float[Array, "b h w c"]:
        """Images from latents."""
        return self.model.decode(x0)

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        """Real images that show what the conditions ask for, by held-out strokes."""
        if cond is None:
            raise ValueError("real images need a condition per sample, but cond is None")
        return render(keys, Attributes(**cond["attributes"]), self.strokes, self.side)

    def target(self, keys: Keys, cond: Cond = None) -> Samples:
        """As `reference`: a model that knew the data would draw by strokes that are new, too."""
        return self.reference(keys, cond)

    def reconstructions(self, cond: Cond) -> Samples:
        """Other such images after the autoencoder, the same at each call: the best that any sampler
        can do."""
        keys = jax.random.split(jax.random.key(COPY), len(cond["ids"]))
        return self.decode(self.encode(self.reference(keys, cond)))

    def copies(self, cond: Cond) -> Samples:
        """Images of conditions by strokes that the model learnt from, turned and sheared anew, the
        same at each call: what a generator that remembers would show."""
        keys = jax.random.split(jax.random.key(COPY), len(cond["ids"]))
        learnt = jnp.asarray(strokes("generator"))
        return render(keys, Attributes(**cond["attributes"]), learnt, self.side)

    def judge(self, images: Float[Array, "b h w c"]) -> Verdict:
        """What the judge sees in images: logits of digit, ink and paper, and its features."""
        return in_batches(partial(_judge, self.judging), images, images.shape[1:3])

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
        """The judge's features, (b, 64) unless it is another judge."""
        return self.judge(images).features

    def agreement(self, images: Float[Array, "b h w c"], cond: Cond) -> Float[Array, "b"]:
        """Cosine of each image with its own prompt, by CLIP."""
        see = partial(_see, self.clip)
        return jnp.sum(
            in_batches(see, images, images.shape[1:3]) * _read(self.clip, cond["ids"]), 1
        )

    def stroke_features(self, images: Float[Array, "b h w c"], cond: Cond) -> Float[Array, "b f"]:
        """The judge's features of the strokes alone, see `alone`."""
        return self.features(alone(images, cond["attributes"]["ink"], cond["attributes"]["paper"]))

    @cached_property
    def learnt_strokes(self) -> Float[np.ndarray, "n f"]:
        """`stroke_features` of the strokes that the model learnt from, (n, f)."""
        keys = jax.random.split(jax.random.key(0), LEARNT_PICTURES)
        shown = draw(keys)._replace(size=jnp.full(len(keys), SIZES.index("large")))
        pictures = render(keys, shown, jnp.asarray(strokes("generator")), self.side)
        return np.asarray(self.stroke_features(pictures, {"attributes": shown._asdict()}))


def text_to_image(
    path: str | Path | None = None,
    *,
    prompts: int | str | Sequence[str] = 4096,
    guidance: int | float | None = 2.0,
    held_out_combinations: bool = False,
    held_out_templates: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    negative: str | None = None,
    height: int | None = None,
    width: int | None = None,
) -> CaptionedDigits | TextToImage | Guided:
    """A model of captioned digits as a problem: by default the one that comes with optdiff.

    Args:
      path: a folder in the diffusers layout, with a `clip` and a `judge` beside the usual parts;
        None for the shipped one.
      prompts: how many the pool holds, drawn from the grammar of captions; or the prompts
        themselves, of which nothing is known but the words: then the problem is a plain
        `TextToImage`, which has no judge and no real images. The shipped model knows digits,
        colours, sizes and places; prompts with none of these words bring a warning.
      guidance: classifier-free guidance scale, or None for none, at half the cost.
      held_out_combinations: ask for digit, ink and paper in company that training never showed.
      held_out_templates: ask in words that training never used.
      seed: of the pool.
      dtype: of the model's weights, such as "bfloat16"; judge and CLIP stay float32.
      negative: what guidance leads away from, by default the empty prompt.
      height, width: of images in pixels, if not those of training; only with prompts of one's own,
        as the judge knows no other size.

    Raises:
      CheckpointError: if the files cannot be trusted or understood.
      ValueError: as for `from_pipeline`, if the pool is empty, or for a size that the judge has not
        learnt from.

    >>> problem = text_to_image(guidance=2.0)  # doctest: +SKIP
    >>> problem.condition(jax.random.split(jax.random.key(0), 4))["context"].shape  # doctest: +SKIP
    (4, 24, 96)
    """
    asks = isinstance(prompts, int) or path is not None
    strange = [] if asks else [p for p in np.atleast_1d(prompts).tolist() if _says_nothing(p)]
    if strange:
        warnings.warn(
            f"the shipped model knows no word of {strange[0]!r}: ask for a digit, its ink and its "
            "paper, such as 'a small red seven on blue, top left'",
            stacklevel=2,
        )
    path = SHIPPED if path is None else path
    asked = {"guidance": guidance, "negative": negative, "height": height, "width": width}
    if not isinstance(prompts, int):
        return stable_diffusion(path, prompts=prompts, dtype=dtype, **asked)
    if prompts < 1:
        raise ValueError(f"prompts = {prompts}: the pool needs one at least")
    pipeline = load(path, dtype=jnp.dtype(dtype))
    guided = from_pipeline(pipeline, **asked)
    model = guided if guidance is None else guided.problem
    judge = load_module(Path(path) / "judge")
    h, w, side = *model.size, judge.config.side
    if (h, w) != (side, side):
        raise ValueError(
            f"images of {h} x {w}, but the judge knows {side} x {side}: leave height and width "
            "open, or give prompts of your own, whose images nobody judges"
        )
    problem = CaptionedDigits(
        replace(model, prompts=None),
        network(pipeline.text_encoders[0]),
        pool(pipeline, prompts, held_out_combinations, held_out_templates, seed),
        jnp.asarray(strokes("held_out")),
        network(judge),
        network(load_module(Path(path) / "clip")),
    )
    if guidance is None:
        return problem
    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), problem.prompts)
    return Guided(problem, guided.scale, {**nothing, "context": guided.uncond["context"]})


def _says_nothing(prompt: str) -> bool:
    """Whether a prompt has words, but none that the captions of digits use for what they show."""
    words = re.findall(r"\w+", prompt.lower())
    return bool(words) and WORDS.isdisjoint(words)


def pool(
    pipeline: Pipeline, count: int, held_out_combinations: bool, held_out_templates: bool, seed: int
) -> Cond:
    """Prompts of the grammar, each with what it asks for, fixed by the seed.

    Returns:
      `ids` (count, tokens), `attributes` and `mentions`, dicts of (count,) integers and booleans,
      and `template` (count,).
    """
    rng = np.random.default_rng(checked_seed(seed))
    templates = rng.choice(HELD_OUT if held_out_templates else TRAINED, count)
    shown = draw(jax.random.split(seed_key(seed), count), held_out_combinations)
    words = captions(Attributes(*map(np.asarray, shown)), templates)
    length = pipeline.text_encoders[0].config.max_position_embeddings
    mentions = {
        name: jnp.asarray([name in tells(int(template)) for template in templates])
        for name in Attributes._fields
    }
    ids = jnp.asarray(tokenize(pipeline.tokenizers[0], words, length))
    return {
        "ids": ids,
        "attributes": shown._asdict(),
        "mentions": mentions,
        "template": jnp.asarray(templates),
    }


@jax.jit
def alone(
    images: Float[Array, "b h w 3"], ink: Array, paper: Array, *, size: float = 0.21
) -> Float[Array, "b h w 3"]:
    """The strokes of images alone: black on white, in the middle, all of one size.

    `cover = <image - paper, ink - paper> / |ink - paper|^2`, less what is too pale for ink, moved
    by its centre of mass and scaled by its spread about it. What a prompt asks for beside the digit
    is gone, so that strokes compare; turned and sheared ones stay so.

    Args:
      images: (b, h, w, 3) in [0, 1].
      ink, paper: (b,), their colours' places in `COLOURS`.
      size: root mean square distance of ink from its centre, as a share of the height.

    Returns:
      Images of the same shape. One without ink is white.
    """
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))  # pixels are summed
    palette = jnp.asarray(list(COLOURS.values()), images.dtype)
    white, black = (palette[list(COLOURS).index(name)] for name in ("white", "black"))
    h, w = images.shape[1:3]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1) + 0.0
    middle = jnp.array([h - 1, w - 1]) / 2.0

    def one(image, ink, paper):
        along = palette[ink] - palette[paper]
        cover = (image - palette[paper][None, None]) @ along / (along @ along)
        cover = jnp.clip((cover - 0.25) / 0.5, 0.0, 1.0)
        mass = jnp.maximum(cover.sum(), 1e-6)
        centre = jnp.einsum("hw,hwp->p", cover, grid) / mass
        spread = jnp.einsum("hw,hwp->", cover, (grid - centre[None, None]) ** 2) / mass
        zoom = jnp.sqrt(jnp.maximum(spread, 1.0)) / (size * h)
        places = centre[None, None] + zoom * (grid - middle[None, None])
        moved = jax.scipy.ndimage.map_coordinates(cover, [*jnp.moveaxis(places, -1, 0)], order=1)
        return white[None, None] + moved[..., None] * (black - white)[None, None]

    return jax.vmap(one)(images, ink, paper).astype(images.dtype)


@jax.jit
def _conditions(text_encoder: Network, prompts: Cond, keys: Keys) -> Cond:
    chosen = drawn(prompts, keys)
    return {**chosen, "context": text_encoder.module()(chosen["ids"]).last_hidden_state}


@jax.jit
def _judge(judge: Network, images: Samples) -> Verdict:
    return judge.module()(images.astype(jnp.float32))


@jax.jit
def _see(clip: Network, images: Samples) -> Float[Array, "b p"]:
    return clip.module().image_features(to_clip(images.astype(jnp.float32)))


@jax.jit
def _read(clip: Network, ids: Array) -> Float[Array, "b p"]:
    return clip.module().text_features(ids)
