"""Captions: enough ways to say it, in English, and true of what they caption."""

import re

import numpy as np
import pytest

from optdiff.data.captioned_digits import COLOURS, COLUMNS, ROWS, SIZES, Attributes
from optdiff.data.captions import HELD_OUT, TEMPLATES, TRAINED, WORDS, caption, captions, tells

RANGES = (10, len(COLOURS), len(COLOURS), len(SIZES), len(ROWS), len(COLUMNS))
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def some(n: int, seed: int = 0) -> Attributes:
    rng = np.random.default_rng(seed)
    return Attributes(*(rng.integers(0, size, n) for size in RANGES))


def everything_said(seed: int = 0) -> list[str]:
    """Every template several times, on random attributes."""
    templates = np.repeat(np.arange(len(TEMPLATES)), 8)
    return captions(some(len(templates), seed), templates)


def test_there_are_enough_and_all_differ():
    assert len(TEMPLATES) >= 200 and len(set(TEMPLATES)) == len(TEMPLATES)
    full = [{"digit", "ink", "paper"} <= tells(i) for i in range(len(TEMPLATES))]
    assert np.mean(full) >= 0.7
    assert all("digit" in tells(i) for i in range(len(TEMPLATES)))
    assert all(any(name in tells(i) for i in TRAINED) for name in Attributes._fields)


def test_held_out_templates_are_apart_and_of_every_kind():
    assert sorted(TRAINED + HELD_OUT) == list(range(len(TEMPLATES)))
    assert 10 <= len(HELD_OUT) <= len(TEMPLATES) // 8
    told = [tells(i) for i in HELD_OUT]
    assert all(any(name in names for names in told) for name in Attributes._fields)
    assert any({"digit", "ink", "paper"} > names for names in told)
    # What is new in a held-out template is how it is put together, never a word.
    words = [set(" ".join(TEMPLATES[i] for i in which).split()) for which in (HELD_OUT, TRAINED)]
    assert words[0] <= words[1]


@pytest.mark.parametrize("name", Attributes._fields)
def test_a_caption_changes_with_what_it_tells_and_with_nothing_else(name):
    """For each template: as many captions as the attribute has values, or one."""
    place = Attributes._fields.index(name)
    base = some(1, seed=3)
    count = RANGES[place]
    for template in range(len(TEMPLATES)):
        values = [np.repeat(value, count) for value in base]
        values[place] = np.arange(count)
        said = captions(Attributes(*values), np.full(count, template))
        assert len(set(said)) == (count if name in tells(template) else 1), TEMPLATES[template]


def test_what_is_said_is_true():
    """The words for number and colours, read back, are the attributes."""
    about = some(len(TEMPLATES), seed=1)
    for i, said in enumerate(captions(about, np.arange(len(TEMPLATES)))):
        digits = {f"{about.digit[i]}", NUMBERS[about.digit[i]]}
        # "one" and such appear as the number alone, never as another word.
        assert set(said.replace(",", "").split()) & {*NUMBERS, *"0123456789"} <= digits
        colours = {name: list(COLOURS)[getattr(about, name)[i]] for name in ("ink", "paper")}
        told = {colours[name] for name in colours if name in tells(i)}
        assert set(said.replace(",", "").split()) & set(COLOURS) == told


def test_articles_are_right_and_no_slot_is_left():
    for said in everything_said():
        assert not re.search(r"[{}\[\]|]|  | ,|^ | $", said), said
        for article, word in re.findall(r"\b(an?) (\S+)", said):
            vowel = word[0] in "aeiou8" and word != "one"
            assert article == ("an" if vowel else "a"), said


def test_prompts_of_the_issue_are_in_the_language():
    white, red, yellow, blue = (list(COLOURS).index(c) for c in ("white", "red", "yellow", "blue"))

    def language(**values):
        about = Attributes(**{**dict.fromkeys(Attributes._fields, 0), **values})
        return {caption(about, template) for template in TRAINED}

    prompts = language(digit=7, ink=red, paper=yellow)
    assert {"a red seven on a yellow background", "the digit 7 in red ink on yellow"} <= prompts
    assert "a small red seven on white" in language(digit=7, ink=red, paper=white, size=0)
    assert "a photo of a blue 3, bottom left" in language(digit=3, ink=blue, row=2, column=0)
    assert "an orange 8 on black" in language(digit=8, ink=list(COLOURS).index("orange"))


def test_a_batch_says_what_each_picture_alone_would():
    about, templates = some(50, seed=2), np.arange(50)
    alone = [
        caption(Attributes(*(int(value[i]) for value in about)), int(templates[i]))
        for i in range(50)
    ]
    assert captions(about, templates) == alone


def test_words_are_what_captions_show_and_nothing_else():
    assert {*NUMBERS, *"0123456789", *COLOURS, "small", "big", "left", "centre"} <= WORDS
    frame = {"a", "an", "the", "of", "photo", "paper", "background", "on", "in", "at", "digit"}
    assert not WORDS & frame
    assert all(WORDS & set(re.findall(r"\w+", said)) for said in everything_said())
