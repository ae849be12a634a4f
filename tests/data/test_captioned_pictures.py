"""Captioned digits: who sees which strokes and combinations; pictures show what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.data.captioned_digits import (
    COLOURS,
    Attributes,
    combinations,
    draw,
    render,
    strokes,
)

PALETTE = np.array(list(COLOURS.values()))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def pictures(attributes, seed=0, **options):
    count = len(attributes.digit)
    return np.asarray(
        render(keys(count, seed), attributes, jnp.asarray(strokes("generator")), **options)
    )


def cover(images, attributes):
    """How much ink each pixel has, from the known colours."""
    paper = PALETTE[attributes.paper][:, None, None]
    along = PALETTE[attributes.ink][:, None, None] - paper
    return np.sum((images - paper) * along, -1) / np.sum(along**2, -1)


def alike(count, **fixed):
    """The same attributes `count` times: a black five on white, in the middle, but for `fixed`."""
    about = {"digit": 5, "ink": 0, "paper": 1, "size": 1, "row": 1, "column": 1} | fixed
    return Attributes(*(np.full(count, about[name]) for name in Attributes._fields))


def test_no_stroke_is_in_two_sets():
    sets = [
        {image.tobytes() for image in strokes(who).reshape(-1, 784)}
        for who in ("generator", "judge", "held_out")
    ]
    assert [len(s) for s in sets] == [2000, 2000, 1000]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_a_tenth_of_the_combinations_is_held_out_and_all_their_parts_are_learnt():
    learnt, held_out = (
        {tuple(row) for row in combinations(side).tolist()} for side in (False, True)
    )
    assert len(learnt | held_out) == 560 and not learnt & held_out and len(held_out) == 56
    for part in (lambda c: c[0], lambda c: c[1:]):
        assert {part(c) for c in held_out} <= {part(c) for c in learnt}
    assert {digit for digit, *_ in held_out} == set(range(10))


@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_drawn_is_allowed_and_everything_allowed_is_drawn(held_out):
    drawn = draw(keys(8000), held_out)
    found = {tuple(row) for row in np.stack(drawn[:3], -1).tolist()}
    assert found == {tuple(row) for row in combinations(held_out).tolist()}
    assert [sorted(set(np.asarray(values).tolist())) for values in drawn[3:]] == [[0, 1, 2]] * 3


def test_a_picture_shows_its_colours():
    about = Attributes(*map(np.asarray, draw(keys(200))))
    images = pictures(about)
    assert images.min() >= 0 and images.max() <= 1
    corner = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # mostly paper
    nearest = np.linalg.norm(np.median(corner, 1)[:, None] - PALETTE[None], axis=-1).argmin(-1)
    assert np.mean(nearest == about.paper) > 0.98
    inked = cover(images, about)
    darkest = images.reshape(200, -1, 3)[np.arange(200), inked.reshape(200, -1).argmax(-1)]
    nearest = np.linalg.norm(darkest[:, None] - PALETTE[None], axis=-1).argmin(-1)
    assert np.mean(nearest == about.ink) > 0.98


def test_size_and_place_are_where_they_are_said_to_be():
    def where(about):
        ink = cover(pictures(about), about)
        ink = ink * (ink > 0.3)  # what is less is the shade of the paper
        mass = ink.sum((1, 2))
        grid = np.arange(32) - 15.5
        return (
            mass.mean(),
            np.mean((ink.sum(2) @ grid) / mass),
            np.mean((ink.sum(1) @ grid) / mass),
        )

    areas = [where(alike(40, size=size))[0] for size in range(3)]
    assert areas[0] * 1.4 < areas[1] and areas[1] * 1.3 < areas[2]
    for name, axis in (("row", 1), ("column", 2)):
        centres = [where(alike(40, size=0, **{name: place}))[axis] for place in range(3)]
        np.testing.assert_allclose(np.diff(centres), 6.0, atol=0.5)


def test_a_picture_depends_on_its_key_alone_and_other_keys_give_other_strokes():
    about = alike(6)
    together = pictures(about)
    for i in range(6):
        one = Attributes(*(values[i : i + 1] for values in about))
        alone = render(keys(6)[i : i + 1], one, jnp.asarray(strokes("generator")))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)
    assert len({image.tobytes() for image in together}) == 6


def test_a_larger_canvas_shows_the_same_picture():
    about = alike(4, size=2)
    small, large = pictures(about), pictures(about, side=64)
    halved = large.reshape(4, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 0.01
