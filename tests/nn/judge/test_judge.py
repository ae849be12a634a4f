"""The judge's files: what is saved is what is loaded, and nothing else is taken for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optdiff.nn.checkpoint import load_module, save_module
from optdiff.nn.judge.model import Judge, JudgeConfig

CONFIG = JudgeConfig(widths=(8, 16), features=5, side=8)


def test_a_saved_judge_judges_as_before(tmp_path):
    judge = Judge(CONFIG, rngs=nnx.Rngs(0))
    save_module(tmp_path / "judge", judge)
    loaded = load_module(tmp_path / "judge")
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))
    assert loaded.config == CONFIG
    for ours, theirs in zip(judge(images), loaded(images), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_answers_every_question_from_features_alone():
    verdict = Judge(CONFIG, rngs=nnx.Rngs(0))(jnp.zeros((3, 8, 8, 3)))
    assert [v.shape for v in verdict] == [(3, 10), (3, 8), (3, 8), (3, 5)]


def test_images_of_another_size_and_unknown_fields_are_refused():
    with pytest.raises(ValueError, match=r"16x8.*learnt from 8x8"):
        Judge(CONFIG, rngs=nnx.Rngs(0))(jnp.zeros((1, 16, 8, 3)))
    with pytest.raises(ValueError, match="depth = 3: not a known field"):
        JudgeConfig.from_dict({**CONFIG.to_dict(), "depth": 3})
