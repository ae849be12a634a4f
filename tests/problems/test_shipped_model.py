"""The model that comes with optdiff: as small and as good as is said of it."""

import doctest

import jax.numpy as jnp
import pytest

from optdiff.grids import karras
from optdiff.metrics import attribute_accuracy, copied_memorization, stroke_memorization
from optdiff.problems import captioned_digits
from optdiff.problems.captioned_digits import SHIPPED, text_to_image
from optdiff.sample import sample, sample_keys
from optdiff.samplers import ddim, dpmpp_2m

COUNT = 128


@pytest.fixture(scope="module")
def shipped():
    return text_to_image()


@pytest.fixture(scope="module")
def drawn(shipped):
    """`drawn(sampler, nfe)`: images of a few prompts, with the prompts."""

    def draw(sampler, nfe):
        keys = sample_keys(0, COUNT)
        cond = shipped.condition(keys)
        levels = jnp.asarray(karras(shipped.schedule, nfe), jnp.float32)
        return shipped.decode(sample(shipped, sampler, levels, keys, cond=cond)[0]), cond

    return draw


def test_it_weighs_no_more_than_a_repository_bears():
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20 * 2**20


@pytest.mark.slow
def test_the_example_that_quick_runs_skip_is_true():
    [example] = doctest.DocTestFinder().find(text_to_image, globs=vars(captioned_digits))
    assert example.examples
    for line in example.examples:
        del line.options[doctest.SKIP]
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.slow
def test_images_show_what_was_asked_for_and_less_so_in_four_steps(shipped, drawn):
    def right(sampler, nfe):
        images, cond = drawn(sampler, nfe)
        return attribute_accuracy(images, cond, shipped.problem.judge)["attribute_accuracy"]

    at_twenty, at_four = right(ddim(), 20), right(dpmpp_2m(), 4)
    assert at_twenty >= 0.9 and at_four < at_twenty - 0.05


@pytest.mark.slow
def test_strokes_are_no_copies_and_copies_would_be_seen(shipped, drawn):
    images, cond = drawn(ddim(), 20)
    inner = shipped.problem
    real = inner.reference(sample_keys(1, COUNT), cond)
    seen = {"cond": cond, "stroke_features": inner.stroke_features}
    seen |= {"reference": real, "learnt_strokes": inner.learnt_strokes}
    assert stroke_memorization(images, **seen) <= 0.05
    assert copied_memorization(copies=inner.copies, **seen) > 0.2
