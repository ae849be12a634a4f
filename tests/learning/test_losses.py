"""What networks minimize, against other implementations and answers known to be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from optdiff.denoisers import (
    edm_scaling,
    eps_scaling,
    flow_scaling,
    v_scaling,
    without_time_conditioning,
    x0_scaling,
)
from optdiff.learning.clip import contrastive, sets_apart
from optdiff.learning.distances import absolute, pseudo_huber, squared
from optdiff.learning.judge import classification
from optdiff.learning.noise_levels import log_normal, uniform_logsnr, uniform_time
from optdiff.learning.unet import Teachers, denoising
from optdiff.learning.vae import autoencoding
from optdiff.nn.clip.model import Similarity
from optdiff.nn.judge.model import Judge, JudgeConfig
from optdiff.nn.network import network
from optdiff.nn.vae.model import Posterior
from optdiff.noise import flow, scaled_linear, variance_exploding

KEY = jax.random.key(3)


class Autoencoder(nnx.Module):
    """Latents are the images' channels, and one number that learns."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(()))

    def encode(self, images):
        return Posterior(self.gain[...] * images, jnp.full(images.shape, 0.5))

    def decode(self, latents):
        return latents / self.gain[...]


class Text(nnx.Module):
    """Says the ids."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, ids):
        from optdiff.nn.clip.model import Encoding

        states = ids[..., None].astype(jnp.float32) * self.gain[...]
        return Encoding(states, (), states[:, 0], None)


class Knowing(nnx.Module):
    """A network that knows the one picture there is, and how it was asked: it is always right."""

    def __init__(self, x0, scaling, schedule):
        self.x0, self.scale = nnx.Param(x0), nnx.Param(jnp.ones(()))
        self.scaling, self.schedule = scaling, schedule

    def __call__(self, z, t, context):
        # The level is read off the time it is told.
        sigma = jnp.exp(4.0 * t) if self.scaling is edm_scaling else self.schedule.sigma(t)
        c = [value[:, None, None, None] for value in self.scaling(self.schedule, sigma)]
        return self.scale[...] * (self.x0[...][None] - c[0] * z / c[2]) / c[1]


@pytest.mark.parametrize(
    ("scaling", "schedule"),
    [
        (eps_scaling, scaled_linear()),
        (v_scaling, scaled_linear()),
        (x0_scaling, scaled_linear()),
        (flow_scaling, flow(t_max=0.99)),
        (edm_scaling, variance_exploding()),
    ],
)
@pytest.mark.parametrize("levels", [uniform_time, uniform_logsnr, log_normal])
def test_the_denoisers_loss_is_zero_for_who_knows_and_for_nobody_else(scaling, schedule, levels):
    image = jax.random.uniform(KEY, (4, 4, 3))
    batch = {"images": jnp.stack([image] * 5), "ids": jnp.ones((5, 2), jnp.int32)}
    knowing = network(Knowing(2.0 * image - 1.0, scaling, schedule))
    teachers = Teachers(network(Autoencoder()), network(Text()), jnp.zeros((1, 2), jnp.int32))
    options = {"schedule": schedule, "scaling": scaling, "levels": levels}
    right, _ = denoising(knowing, teachers, batch, KEY, **options)
    assert right < 1e-6
    gradient = jax.grad(lambda n: denoising(n, teachers, batch, KEY, **options)[0])(knowing)
    wrong = jax.tree.map(lambda w: 1.1 * w, knowing)
    assert denoising(wrong, teachers, batch, KEY, **options)[0] > 1e-3
    assert jnp.abs(gradient.weights["scale"]) < 1e-3


def test_captions_are_dropped_as_often_as_asked():
    class Listening(Knowing):
        def __call__(self, z, t, context):
            heard = context.sum((1, 2))[:, None, None, None]  # 0 where the caption was dropped
            return jnp.ones_like(z) * heard

    image = jnp.zeros((1, 1, 3))
    batch = {"images": jnp.stack([image] * 1000), "ids": jnp.ones((1000, 1), jnp.int32)}
    listening = network(Listening(image, eps_scaling, scaled_linear()))
    teachers = Teachers(network(Autoencoder()), network(Text()), jnp.zeros((1, 1), jnp.int32))

    def heard(answer, truth):
        return jnp.mean(answer)

    loss, _ = denoising(
        listening, teachers, batch, KEY,
        schedule=scaled_linear(), scaling=eps_scaling, distance=heard, dropout=0.25,
    )  # fmt: skip
    assert abs(loss - 0.75) < 0.05


def test_a_network_that_is_not_told_the_level_gets_the_same_of_everything_else():
    sigma = jnp.array([0.1, 2.0])
    told, blind = (
        s(scaled_linear(), sigma) for s in (v_scaling, without_time_conditioning(v_scaling))
    )
    assert jnp.all(blind.c_noise == 0) and jnp.all(told.c_noise != 0)
    for name in ("c_skip", "c_out", "c_in"):
        np.testing.assert_array_equal(getattr(told, name), getattr(blind, name))


def test_the_contrastive_loss_is_that_of_transformers():
    from transformers.models.clip import modeling_clip

    rng = np.random.default_rng(0)
    image, text = (
        v / np.linalg.norm(v, axis=-1, keepdims=True) for v in rng.normal(size=(2, 6, 4))
    )

    class Given(nnx.Module):
        def __init__(self):
            self.logit_scale = nnx.Param(jnp.asarray(2.0))

        def __call__(self, ids, images):
            return Similarity(jnp.asarray(image), jnp.asarray(text), None)

    loss, seen = contrastive(
        network(Given()),
        None,
        {"ids": jnp.zeros((6, 1), jnp.int32), "images": jnp.zeros((6, 1, 1, 3))},
        KEY,
    )
    logits = torch.tensor(np.exp(2.0) * text @ image.T)
    loss_fn = getattr(modeling_clip, "clip_loss", None) or modeling_clip.image_text_contrastive_loss
    np.testing.assert_allclose(loss, loss_fn(logits).item(), rtol=1e-6)
    assert seen["retrieval"] == np.mean(np.argmax(image @ text.T, -1) == np.arange(6))


def test_sets_of_candidates_share_no_attributes():
    rng = np.random.default_rng(0)
    attributes = rng.integers(0, 5, (500, 6))
    sets = sets_apart(attributes[:, :3], 32)
    assert len(sets) >= 10
    for places in sets:
        assert len({tuple(row) for row in attributes[places, :3].tolist()}) == 32
    assert len(np.concatenate(sets)) == len(set(np.concatenate(sets).tolist()))


def test_the_autoencoders_divergence_is_torchs():
    images = jax.random.uniform(KEY, (2, 3, 3, 3))
    _, seen = autoencoding(network(Autoencoder()), None, {"images": images}, KEY)
    q = torch.distributions.Normal(torch.tensor(np.asarray(2.0 * images - 1.0)), 0.5)
    p = torch.distributions.Normal(0.0, 1.0)
    np.testing.assert_allclose(
        seen["kl"], torch.distributions.kl_divergence(q, p).mean().item(), rtol=1e-5
    )


def test_the_judges_loss_is_three_of_torchs():
    judge = Judge(JudgeConfig(widths=(8,), features=4, side=4), rngs=nnx.Rngs(0))
    images = jax.random.uniform(KEY, (5, 4, 4, 3))
    answers = np.stack([np.arange(5), np.arange(5)[::-1], np.ones(5, int)], -1)
    batch = {"images": images, "attributes": jnp.asarray(answers)}
    loss, _ = classification(network(judge), None, batch, KEY, noise=0.0)
    verdict = judge(images)
    theirs = sum(
        torch.nn.functional.cross_entropy(
            torch.tensor(np.asarray(logits)), torch.tensor(answers[:, i].copy())
        ).item()
        for i, logits in enumerate(verdict[:3])
    )
    np.testing.assert_allclose(loss, theirs, rtol=1e-5)


def test_pseudo_huber_lies_between_squared_and_absolute():
    a, b = jax.random.normal(KEY, (2, 50, 1))
    np.testing.assert_allclose(2e3 * pseudo_huber(a, b, c=1e3), squared(a, b), rtol=1e-3)
    np.testing.assert_allclose(pseudo_huber(a, b, c=1e-6), absolute(a, b), rtol=1e-5)


@pytest.mark.parametrize("levels", [uniform_time, uniform_logsnr])
def test_levels_fill_their_range_evenly(levels):
    schedule = scaled_linear()
    sigma = levels(schedule, KEY, 1000)
    place = schedule.t(sigma) / 999.0
    if levels is uniform_logsnr:
        low, high = np.log([schedule.sigma_min, schedule.sigma_max])
        place = (jnp.log(sigma) - low) / (high - low)
    # One in each thousandth of the range, but for rounding at the edges.
    parts = np.bincount(np.floor(np.asarray(place) * 1000 + 1e-3).astype(int).clip(0, 999))
    assert np.abs(np.cumsum(parts) - np.arange(1, len(parts) + 1)).max() <= 1


def test_log_normal_levels_have_their_moments():
    sigma = jnp.log(log_normal(variance_exploding(), KEY, 20000, mean=-1.0, std=0.7))
    assert abs(sigma.mean() + 1.0) < 0.02 and abs(sigma.std() - 0.7) < 0.02
