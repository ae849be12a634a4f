"""Attribute accuracy and CLIPScore against counting by hand and against torchmetrics' formula."""

from types import SimpleNamespace

import numpy as np
import pytest

from optdiff.metrics import attribute_accuracy, clip_score

NAMES = ("digit", "ink", "paper")
ANSWERS = {"digit": 10, "ink": 8, "paper": 8}


def judge(images):
    """Reads the answers off the pixels: sample i holds the numbers that it shows."""
    images = np.asarray(images)
    return SimpleNamespace(
        **{
            name: -np.abs(images[:, [place]] - np.arange(ANSWERS[name]))
            for place, name in enumerate(NAMES)
        }
    )


def asked(values, told=None):
    told = np.ones((len(values), 3), bool) if told is None else np.asarray(told)
    pick = lambda table: {name: table[:, place] for place, name in enumerate(NAMES)}  # noqa: E731
    return {"attributes": pick(np.asarray(values)), "mentions": pick(told)}


def test_it_counts_what_is_right():
    wanted = np.array([[3, 1, 2], [4, 1, 2], [5, 0, 7], [9, 6, 0]])
    shown = wanted.astype(float)
    shown[0, 0], shown[1, 1], shown[1, 2] = 8, 5, 5
    assert attribute_accuracy(shown, asked(wanted), judge) == {
        "attribute_accuracy": 0.5,
        "digit_accuracy": 0.75,
        "ink_accuracy": 0.75,
        "paper_accuracy": 0.75,
    }


def test_what_no_prompt_tells_cannot_be_wrong():
    wanted = np.array([[3, 1, 2], [4, 1, 2]])
    shown = np.array([[3.0, 7.0, 2.0], [4.0, 1.0, 6.0]])
    told = [[True, False, False], [True, True, False]]
    found = attribute_accuracy(shown, asked(wanted, told), judge)
    assert found == {"attribute_accuracy": 1.0, "digit_accuracy": 1.0, "ink_accuracy": 1.0}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_guessing_is_right_by_chance(share):
    # Of independent attributes, each replaced with probability p by a guess among k.
    rng = np.random.default_rng(0)
    wanted, guess = (
        np.stack([rng.integers(k, size=100_000) for k in ANSWERS.values()], 1) for _ in range(2)
    )
    shown = np.where(rng.random(wanted.shape) < share, guess, wanted).astype(float)
    found = attribute_accuracy(shown, asked(wanted), judge)
    each = {name: 1 - share + share / k for name, k in ANSWERS.items()}
    for name in NAMES:
        assert found[f"{name}_accuracy"] == pytest.approx(each[name], abs=0.005)
    assert found["attribute_accuracy"] == pytest.approx(np.prod(list(each.values())), abs=0.005)


def test_conditions_of_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"3 samples, but \(4,\) conditions say digit"):
        attribute_accuracy(np.zeros((3, 3)), asked(np.zeros((4, 3), int)), judge)


def test_clip_score_is_that_of_unit_vectors():
    # Images and texts on a circle: the cosines are those of the angles between them.
    angles = np.array([0.0, np.pi / 3, np.pi / 2, np.pi])
    images = np.stack([np.cos(angles), np.sin(angles)], 1)
    score = clip_score(images, {"text": [1.0, 0.0]}, lambda x, cond: x @ np.array(cond["text"]))
    assert score == pytest.approx(2.5 * (1 + 0.5 + 0 + 0) / 4)
    plain = clip_score(images[:2], {"text": [1.0, 0.0]}, lambda x, cond: x[:, 0], weight=1.0)
    assert plain == pytest.approx(0.75)
