"""The stream of captioned digits: the same examples however they are read."""

import numpy as np
import pytest

from optdiff.data.caption_stream import captioned_digits
from optdiff.data.captioned_digits import Attributes, combinations
from optdiff.data.captions import HELD_OUT, TRAINED, captions, tells


def as_bytes(texts):
    """A tokenizer of a kind: letters, padded."""
    return np.array([list(text.encode().ljust(80)) for text in texts], np.int32)


def read(stream, batches=1):
    position, found = stream.start, []
    for _ in range(batches):
        batch, position = stream.read(position)
        found.append({name: np.asarray(value) for name, value in batch.items()})
    return {name: np.concatenate([b[name] for b in found]) for name in found[0]}, position


def test_an_example_does_not_depend_on_its_batch_or_on_the_hosts():
    whole, position = read(captioned_digits(batch=8, tokenize=as_bytes))
    parts, again = read(captioned_digits(batch=4, tokenize=as_bytes), batches=2)
    assert position == again == 8
    shares = [
        read(captioned_digits(batch=8, tokenize=as_bytes, host=h, hosts=2))[0] for h in (0, 1)
    ]
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([s[name] for s in shares]), values, atol=1e-6)


def test_neighbours_share_their_colours_when_they_shall_be_alike():
    whole, _ = read(captioned_digits(batch=64, alike=8), batches=4)
    about = whole["attributes"].reshape(32, 8, -1)
    assert (about[..., 1:3] == about[:, :1, 1:3]).all()
    assert len(np.unique(about[:, 0, 1:3], axis=0)) > 15  # of 56 pairs, drawn 32 times
    assert set(map(tuple, whole["attributes"][:, :3])) <= set(map(tuple, combinations(False)))
    assert np.bincount(whole["attributes"][:, 0], minlength=10).min() > 10  # of 26 expected
    parts, _ = read(captioned_digits(batch=4, alike=8), batches=2)
    np.testing.assert_array_equal(parts["attributes"], whole["attributes"][:8])
    shares = [read(captioned_digits(batch=8, alike=8, host=h, hosts=2))[0] for h in (0, 1)]
    shares = np.concatenate([share["attributes"] for share in shares])
    np.testing.assert_array_equal(shares, whole["attributes"][:8])
    unseen, _ = read(captioned_digits(batch=64, alike=8, held_out=True))
    assert set(map(tuple, unseen["attributes"][:, :3])) <= set(map(tuple, combinations(True)))


def test_to_go_on_is_to_read_from_a_position_that_was_kept():
    whole, _ = read(captioned_digits(batch=4), batches=2)
    stream = captioned_digits(batch=4)
    _, position = stream.read(stream.start)
    later, _ = captioned_digits(batch=4).read(position)
    np.testing.assert_array_equal(later["images"], whole["images"][4:])


@pytest.mark.parametrize("held_out", [False, True])
def test_captions_tell_what_pictures_show_in_templates_for_their_readers(held_out):
    stream = captioned_digits(
        batch=64, tokenize=as_bytes, held_out=held_out, telling=("digit", "ink", "paper")
    )
    found, _ = read(stream)
    said = [bytes(row.astype(np.uint8)).decode().strip() for row in found["ids"]]
    allowed = [
        t for t in (HELD_OUT if held_out else TRAINED) if tells(t) >= {"digit", "ink", "paper"}
    ]
    for text, about in zip(said, found["attributes"], strict=True):
        assert about[:3].tolist() in combinations(held_out).tolist()
        one = Attributes(*(np.full(len(allowed), value) for value in about))
        assert text in captions(one, np.array(allowed))


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch of 5 does not divide among 2 hosts"):
        captioned_digits(batch=5, hosts=2)
