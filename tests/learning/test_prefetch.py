"""Prefetch: calls of several steps, in order, and where their arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.learning.prefetch import Prefetch
from optdiff.types import Stream


def read(position):
    """An image made on a device and words made on the host, as captioned digits are read."""
    batch = {"images": jnp.full((3, 2), position), "ids": np.full((3, 4), position)}
    return batch, position + 3


@pytest.mark.parametrize("parts", [1, 2])
def test_calls_hold_the_batches_in_order(parts):
    with Prefetch(Stream(0, read), 0, [2, 1], parts, put=lambda batches: batches) as calls:
        first, second = calls
    assert first.positions == [3 * parts, 6 * parts] and second.positions == [9 * parts]
    for call, steps, start in ((first, 2, 0), (second, 1, 2 * parts)):
        of = 3 * (start + np.arange(steps * parts).reshape(steps, parts, 1, 1))
        for name, width in (("images", 2), ("ids", 4)):
            np.testing.assert_array_equal(call.batches[name], of + np.zeros((3, width), int))


def test_what_is_made_on_a_device_is_not_fetched():
    with Prefetch(Stream(0, read), 0, [2], 1, put=lambda batches: batches) as calls:
        (call,) = calls
    assert isinstance(call.batches["images"], jax.Array)
    assert isinstance(call.batches["ids"], np.ndarray)


def test_an_error_of_the_stream_is_raised_where_calls_are_taken():
    def broken(position):
        raise OSError("shard 3 ends early")

    with (
        Prefetch(Stream(0, broken), 0, [1], 1, put=lambda batches: batches) as calls,
        pytest.raises(OSError, match="shard 3"),
    ):
        list(calls)
