"""Seeds: each has a key of its own, and those that JAX itself can take mean what JAX means."""

import jax
import jaxtyping
import numpy as np
import pytest

from optdiff.keys import sample_keys, seed_key

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("x64", [False, True])
def test_the_key_of_a_seed_is_made_of_all_its_bits(x64):
    """Threefry's key is the seed's two words (Salmon et al. 2011, as JAX seeds it)."""
    with jax.enable_x64(x64):
        words = [jax.random.key_data(seed_key(seed)).tolist() for seed in SEEDS]
        assert words == [[seed >> 32, seed % 2**32] for seed in SEEDS]
        for seed in SEEDS[:4]:
            assert seed_key(seed) == jax.random.key(np.uint32(seed))


def test_no_two_samples_of_any_seeds_share_a_key():
    words = [jax.random.key_data(sample_keys(seed, 4)) for seed in SEEDS]
    assert len(np.unique(np.concatenate(words), axis=0)) == 4 * len(SEEDS)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "abc", None, float("nan")])
def test_what_is_no_seed_is_refused(seed, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError, match="whole number from 0 to 2\\^64 - 1, not"):
        sample_keys(seed, 1)


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (2**32 - 1, 2), (0, -1)])
def test_samples_that_have_no_key_are_refused(start, count):
    with pytest.raises(ValueError, match="numbered 0 to"):
        sample_keys(0, count, start)
