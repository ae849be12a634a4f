"""The handwritten digits: complete, balanced, apart, and the same for everyone."""

import numpy as np

from optdiff.data.digits import HELD_OUT, digits


def test_split_is_complete_balanced_and_disjoint():
    train, held_out = digits()
    assert len(train.images) == 5000 - HELD_OUT and len(held_out.images) == HELD_OUT
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(held_out.labels).tolist() == [100] * 10
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in held_out.images)


def test_split_is_the_same_every_time():
    for once, again in zip(digits(), digits.__wrapped__(), strict=True):
        np.testing.assert_array_equal(once.images, again.images)
        np.testing.assert_array_equal(once.labels, again.labels)


def test_neither_part_is_a_particular_stretch_of_the_set():
    # The set comes sorted; a split by position would differ in more than chance between its parts.
    train, held_out = digits()
    for label in range(10):
        ours, theirs = (d.images[d.labels == label] for d in (train, held_out))
        difference = ours.mean(axis=0) - theirs.mean(axis=0)
        error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
        assert np.abs(difference / np.maximum(error, 0.02)).max() < 6


def test_ink_is_positive_and_paper_minus_one():
    images = np.concatenate([part.images for part in digits()])
    assert images.dtype == np.float32
    assert images.min() == -1.0 and images.max() == 1.0
    assert (images[:, 0, 0] == -1.0).all()  # corners are paper
    assert -0.9 < images.mean() < -0.6  # most of a picture is
