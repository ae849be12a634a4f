"""Captioned digits as a problem: prompts that are known, real images beside, one image a key."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.data.captioned_digits import COLOURS, Attributes, combinations, render, strokes
from optdiff.data.captions import HELD_OUT, TRAINED, captions
from optdiff.denoisers import Guided
from optdiff.nn.clip.tokenizer import load_tokenizer
from optdiff.problems import captioned_digits
from optdiff.problems.captioned_digits import alone, text_to_image
from optdiff.problems.text_to_image import TextToImage
from optdiff.sample import eps_at, sample, sample_keys, start
from optdiff.samplers import ancestral
from optdiff.types import Problem

LEVELS = jnp.array([10.0, 1.0, 0.1], jnp.float32)
PALETTE = np.array(list(COLOURS.values()))


@pytest.fixture(scope="module")
def problem(random_model):
    return text_to_image(random_model, prompts=64, guidance=2.0)


@pytest.fixture(scope="module")
def told(problem):
    """Keys of eight samples and their conditions."""
    keys = sample_keys(0, 8)
    return keys, problem.condition(keys)


def words(random_model, ids):
    tokenizer = load_tokenizer(random_model / "tokenizer")
    return tokenizer.batch_decode(np.asarray(ids), skip_special_tokens=True)


def said(attributes, templates):
    """All captions of these attributes, as a tokenizer gives them back."""
    found = {captions(attributes, np.array([template]))[0] for template in templates}
    return {caption.lower().replace(" ", "") for caption in found}


def test_it_is_a_problem_like_any_other(problem, told):
    keys, cond = told
    inner = problem.problem
    assert isinstance(problem, Guided) and isinstance(problem, Problem) and problem.passes == 2
    assert isinstance(inner, Problem)
    x, trace = sample(problem, ancestral(), LEVELS, keys, cond=cond)
    assert x.dtype == jnp.float32 and trace.nfe.tolist() == [3] * 8
    images = problem.decode(x)
    assert images.shape == (8, 32, 32, 3) and images.min() >= 0 and images.max() <= 1
    with pytest.raises(ValueError, match="needs a condition"):
        inner.denoise(x, LEVELS[0])
    with pytest.raises(ValueError, match="need a condition"):
        inner.reference(keys)


@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_say_what_the_attributes_are(held_out, random_model):
    problem = text_to_image(
        random_model,
        prompts=40,
        guidance=None,
        held_out_combinations=held_out,
        held_out_templates=held_out,
    )
    prompts = problem.prompts
    asked = {tuple(row) for row in combinations(held_out).tolist()}
    shown = {name: np.asarray(values) for name, values in prompts["attributes"].items()}
    asked_for = problem.words(prompts)
    templates = HELD_OUT if held_out else TRAINED
    for i, text in enumerate(words(random_model, prompts["ids"])):
        one = Attributes(**{name: values[[i]] for name, values in shown.items()})
        assert text.replace(" ", "") in said(one, templates)
        assert text.replace(" ", "") == asked_for[i].lower().replace(" ", "")
        assert (int(one.digit[0]), int(one.ink[0]), int(one.paper[0])) in asked
        for name, colour in (("ink", one.ink[0]), ("paper", one.paper[0])):
            if prompts["mentions"][name][i]:
                assert list(COLOURS)[int(colour)] in text
    assert prompts["mentions"]["digit"].all() and not prompts["mentions"]["size"].all()


def test_a_condition_is_a_function_of_its_key(problem, told):
    keys, cond = told
    alone = problem.condition(keys[5:6])
    jax.tree.map(
        lambda one, all: np.testing.assert_allclose(one[0], all[5], rtol=1e-5, atol=1e-5),
        alone,
        cond,
    )
    pool = np.asarray(problem.problem.prompts["ids"])
    rows = [np.flatnonzero((pool == ids).all(1)) for ids in np.asarray(cond["ids"])]
    assert all(len(row) for row in rows) and len({row[0] for row in rows}) > 3
    shapes = jax.eval_shape(problem.condition, keys)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda a: a.shape, cond)


def test_guidance_leads_away_from_the_empty_prompt(random_model, problem, told):
    keys, cond = told
    plain = text_to_image(random_model, prompts=["", "a red 7"], guidance=None)
    assert isinstance(plain, TextToImage)
    np.testing.assert_allclose(
        problem.uncond["context"], plain.prompts["context"][0], rtol=1e-5, atol=1e-5
    )
    x = start(problem, keys, LEVELS[1], cond)
    scaled = {  # one program: the scale is an argument of it
        scale: eps_at(dataclasses.replace(problem, scale=scale), cond, x, LEVELS[1])
        for scale in (0.0, 1.0, 2.0)
    }
    without, given = scaled[0.0], scaled[1.0]
    assert jnp.abs(given - without).max() > 1e-3
    np.testing.assert_allclose(scaled[2.0], 2 * given - without, rtol=1e-3, atol=1e-3)


def test_the_network_is_told_the_context_alone(problem, told):
    keys, cond = told
    x = start(problem, keys, LEVELS[1], cond)
    eps = eps_at(problem, cond, x, LEVELS[1])
    silent = {name: jax.tree.map(jnp.zeros_like, leaf) for name, leaf in cond.items()}
    same = eps_at(problem, {**silent, "context": cond["context"]}, x, LEVELS[1])
    np.testing.assert_array_equal(same, eps)
    assert jnp.abs(eps_at(problem, silent, x, LEVELS[1]) - eps).max() > 1e-3


@pytest.mark.slow
def test_host_modes_network_and_its_judges_lower_for_tpu_and_cuda(problem, told, lower):
    keys, cond = told
    x = jnp.zeros((8, *problem.problem.model.shape), jnp.float32)
    lower(eps_at, problem, cond, x, LEVELS[0])
    lower(lambda problem, keys: problem.condition(keys), problem, keys)
    images = problem.reference(keys, cond)
    lower(lambda inner, images: inner.judge(images), problem.problem, images)
    lower(lambda inner, images, cond: inner.agreement(images, cond), problem.problem, images, cond)


def test_real_images_show_what_was_asked_for_in_strokes_held_out(problem, told):
    keys, cond = told
    images = problem.reference(keys, cond)
    again = render(keys, Attributes(**cond["attributes"]), jnp.asarray(strokes("held_out")))
    np.testing.assert_array_equal(images, again)
    for image, ink, paper in zip(
        images, cond["attributes"]["ink"], cond["attributes"]["paper"], strict=True
    ):
        seen = np.asarray(image).reshape(-1, 3)
        nearest = np.argmin(((seen[:, None] - PALETTE) ** 2).sum(-1), 1)
        assert np.bincount(nearest).argmax() == paper
        assert (nearest == ink).sum() > 10
    other = problem.problem.target(sample_keys(1, 8), cond)
    assert other.shape == images.shape and np.abs(other - images).max() > 0.3


def test_reconstructions_are_real_images_after_the_autoencoder(problem, told):
    cond = told[1]
    inner = problem.problem
    through = inner.reconstructions(cond)
    real = inner.reference(jax.random.split(jax.random.key(2**31 - 4), 8), cond)
    np.testing.assert_allclose(through, inner.decode(inner.encode(real)), atol=1e-5)


@pytest.mark.parametrize("change", ["colours", "place", "size"])
def test_strokes_alone_are_the_same_whatever_they_are_drawn_in(change, told):
    keys, cond = told
    # One stroke for each key, whatever the attributes; large and central, then otherwise.
    ones = jnp.ones(8, int)
    about = Attributes(cond["attributes"]["digit"], 0 * ones, ones, 2 * ones, ones, ones)
    others = {
        "colours": {"ink": 3 * ones, "paper": 5 * ones},
        "place": {"row": 2 * ones, "column": 0 * ones},
        "size": {"size": ones},
    }
    ink = jnp.asarray(strokes("judge"), jnp.float32)
    first, second = (
        alone(render(keys, shown, ink), shown.ink, shown.paper)
        for shown in (about, about._replace(**others[change]))
    )
    different = alone(render(sample_keys(9, 8), about, ink), about.ink, about.paper)
    near = jnp.sqrt(jnp.mean((first - second) ** 2, axis=(1, 2, 3)))
    far = jnp.sqrt(jnp.mean((first - different) ** 2, axis=(1, 2, 3)))
    assert near.max() < 0.15 and jnp.median(near) < 0.5 * jnp.median(far)


def test_an_image_without_ink_is_white():
    paper = jnp.full((1, 32, 32, 3), jnp.asarray(COLOURS["red"], jnp.float32))
    white = np.broadcast_to(np.float32(COLOURS["white"]), (1, 32, 32, 3))
    np.testing.assert_allclose(alone(paper, jnp.array([4]), jnp.array([2])), white, rtol=1e-6)


@pytest.mark.slow
def test_judge_and_clip_see_images_a_few_at_a_time(problem, told, monkeypatch):
    cond = told[1]
    inner, images = problem.problem, problem.reference(*told)
    verdict, agreement = inner.judge(images), inner.agreement(images, cond)
    assert verdict.digit.shape == (8, 10) and verdict.ink.shape == verdict.paper.shape == (8, 8)
    np.testing.assert_array_equal(inner.features(images), verdict.features)
    assert agreement.shape == (8,) and jnp.abs(agreement).max() <= 1
    monkeypatch.setattr("optdiff.problems.text_to_image.PIXELS_AT_ONCE", 3 * 32 * 32)
    near = {"rtol": 1e-4, "atol": 1e-4}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **near), inner.judge(images), verdict
    )
    np.testing.assert_allclose(inner.agreement(images, cond), agreement, **near)


@pytest.mark.slow
def test_the_strokes_that_were_learnt_are_found_again(problem, told, monkeypatch):
    monkeypatch.setattr(captioned_digits, "LEARNT_PICTURES", 200)
    inner = dataclasses.replace(problem.problem)  # what an earlier test has remembered is left out
    learnt = inner.learnt_strokes
    assert learnt.shape == (200, 12) and inner.learnt_strokes is learnt
    keys = jax.random.split(jax.random.key(0), 200)  # the pictures themselves
    about = captioned_digits.draw(keys)._replace(size=jnp.full(200, 2))
    pictures = render(keys, about, jnp.asarray(strokes("generator")))
    found = inner.stroke_features(pictures, {"attributes": about._asdict()})
    np.testing.assert_allclose(found, learnt, rtol=1e-4, atol=1e-4)


def test_a_pool_is_fixed_by_its_seed_and_may_not_be_empty(random_model, problem):
    same, other = (
        text_to_image(random_model, prompts=64, guidance=None, seed=seed).prompts["ids"]
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(same, problem.problem.prompts["ids"])
    assert (np.asarray(other) != np.asarray(same)).any()
    with pytest.raises(ValueError, match="prompts = 0"):
        text_to_image(random_model, prompts=0)


def test_other_sizes_than_the_judges_want_prompts_of_ones_own(random_model, problem):
    with pytest.raises(ValueError, match=r"images of 32 x 64, but .* 32 x 32: .* prompts"):
        text_to_image(random_model, prompts=4, width=64)
    wide = text_to_image(random_model, prompts=["a red 7"], guidance=None, width=64)
    assert wide.size == (32, 64) and problem.problem.side == 32


def test_the_shipped_model_says_of_which_prompts_it_knows_no_word(monkeypatch):
    def loaded(path, **asked):
        raise LookupError

    monkeypatch.setattr(captioned_digits, "stable_diffusion", loaded)
    for prompts in (["a red 7", "an astronaut on a horse"], "an astronaut on a horse"):
        known = pytest.warns(UserWarning, match="knows no word of 'an astronaut on a horse'")
        with known, pytest.raises(LookupError):
            text_to_image(prompts=prompts)
    for path, prompts in {None: ["", "A RED seven!"], "another": "an astronaut"}.items():
        with warnings.catch_warnings(), pytest.raises(LookupError):
            warnings.simplefilter("error")
            text_to_image(path, prompts=prompts)
