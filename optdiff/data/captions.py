"""What is said of a captioned digit: a grammar of templates, and captions from attributes.

This file owns the words. A template tells some of the attributes, the digit always; which pictures
there are and what their attributes look like is in `captioned_digits.py`.
"""

import re
from collections.abc import Iterator
from itertools import product

import numpy as np
from jaxtyping import Array, Int

from optdiff.data.captioned_digits import COLOURS, SIZES, Attributes

# In brackets, ways to say it: each line stands for all of its combinations. An article before a
# slot becomes "an" where the word that fills it asks for that.
_GRAMMAR = (
    # The digit, its ink and the paper.
    "[|a photo of |a picture of |an image of |a drawing of ]"
    "a {ink} [{word}|{digit}] on [{paper}|a {paper} background|{paper} paper]",
    "the [digit|number|numeral] [{word}|{digit}] in {ink} [|ink ]on "
    "[{paper}|a {paper} background|{paper} paper]",
    "a [|photo of a |scan of a ]handwritten [{word}|{digit}], {ink} on {paper}",
    "a [{word}|{digit}] [written|drawn|painted] in {ink} on [a {paper} page|{paper} paper]",
    "[somebody wrote|someone drew|I see] a {ink} [{word}|{digit}] on [{paper}|{paper} paper]",
    "on [{paper}|a {paper} background|{paper} paper], a {ink} [{word}|{digit}]",
    "a {paper} [card|square|page] with a {ink} [{word}|{digit}] on it",
    "[{word}|{digit}][,| in] {ink} on {paper}",
    "the [number|digit] is [{word}|{digit}], the ink is {ink}, the [paper|background] is {paper}",
    "[a|the] handwritten {ink} [{word}|{digit}] on [{paper}|a {paper} background]",
    "{ink} [{word}|{digit}] on {paper} [background|paper]",
    "{ink} ink, {paper} [paper|background], the [number|digit] [{word}|{digit}]",
    # Its size, its place, or both beside.
    "[|a photo of |a picture of ]"
    "a {sized} {ink} [{word}|{digit}] on [{paper}|a {paper} background]",
    "[|a photo of ]a {big} [{word}|{digit}] in {ink} on [{paper}|{paper} paper]",
    "[|a photo of |a picture of ]a {ink} [{word}|{digit}] on {paper}, {place}",
    "a {ink} [{word}|{digit}] {where} of a {paper} [picture|page|square]",
    "[|a picture of ]a {sized} {ink} [{word}|{digit}] on {paper}, {place}",
    "{where}, a {big} {ink} [{word}|{digit}] on [{paper}|a {paper} background]",
    # Ink or paper left open.
    "[|a photo of |a picture of ][the number|the digit|a handwritten] [{word}|{digit}]",
    "[|a photo of |a drawing of ]a {ink} [{word}|{digit}][|, {place}]",
    "[|a photo of ]a [{word}|{digit}] on [a {paper} background|{paper} paper]",
    "[a|the] {sized} [|{ink} ][{word}|{digit}] {where}",
)

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_WHERE = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)
_PLACES = (
    ("top left", "top centre", "top right"),
    ("centre left", "centre", "centre right"),
    ("bottom left", "bottom centre", "bottom right"),
)
_SLOTS = {  # the attributes that a slot tells, and its words for each of their values
    "digit": (("digit",), list("0123456789")),
    "word": (("digit",), _NUMBERS),
    "ink": (("ink",), list(COLOURS)),
    "paper": (("paper",), list(COLOURS)),
    "sized": (("size",), [size.replace("medium", "medium-sized") for size in SIZES]),
    "big": (("size",), ["little", "medium-sized", "big"]),
    "place": (("row", "column"), _PLACES),
    "where": (("row", "column"), _WHERE),
}
WORDS = frozenset(
    re.findall(r"\w+", " ".join(str(w) for _, words in _SLOTS.values() for w in np.ravel(words)))
) - {"in", "the", "at", "on"}
"""The words that say something of a picture: digits, colours, sizes and places."""

_SLOT = re.compile(r"(\ba )?\{(\w+)\}")


def _sentences(line: str) -> Iterator[str]:
    """All that a line of the grammar stands for."""
    plain, *rest = re.split(r"\[(.*?)\]", line)
    ways = [way.split("|") for way in rest[::2]]
    for choice in product(*ways):
        yield plain + "".join(map("".join, zip(choice, rest[1::2], strict=True)))


def _with_article(words: str) -> str:
    sounds = words.startswith(tuple("aeiou8")) and not words.startswith("one")
    return f"{'an' if sounds else 'a'} {words}"


def _parse(template: str) -> tuple[frozenset[str], list[str], list[tuple]]:
    """What a template tells, the text around its slots, and its slots: attributes and words."""
    plain, slots, end = [], [], 0
    for slot in _SLOT.finditer(template):
        names, words = _SLOTS[slot[2]]
        words = np.array(words, object)
        plain.append(template[end : slot.start()])
        slots.append((names, np.vectorize(_with_article, "O")(words) if slot[1] else words))
        end = slot.end()
    return frozenset(name for names, _ in slots for name in names), [*plain, template[end:]], slots


_LINES = [list(_sentences(line)) for line in _GRAMMAR]

TEMPLATES: tuple[str, ...] = tuple(template for line in _LINES for template in line)
"""All templates; elsewhere a template is its place in here."""

_PARSED = [_parse(template) for template in TEMPLATES]

HELD_OUT: tuple[int, ...] = tuple(
    TEMPLATES.index(line[(9 * kind + 2) % len(line)]) for kind, line in enumerate(_LINES)
)
"""Templates kept for evaluation, one of each kind: nothing that learns reads them."""

TRAINED: tuple[int, ...] = tuple(i for i in range(len(TEMPLATES)) if i not in HELD_OUT)
"""Templates to learn from."""


def tells(template: int) -> frozenset[str]:
    """The attributes (fields of `Attributes`) that a template tells; of the others it is silent.

    >>> sorted(tells(0))
    ['digit', 'ink', 'paper']
    """
    return _PARSED[template][0]


def captions(attributes: Attributes, templates: Int[Array | np.ndarray, "b"]) -> list[str]:
    """One caption for each picture.

    Args:
      attributes: of (b,).
      templates: places in `TEMPLATES`, (b,).

    Returns:
      b captions.

    >>> about = Attributes(*(np.array([value] * 2) for value in (8, 2, 5, 0, 2, 1)))
    >>> captions(about, np.array([0, 1]))
    ['a red eight on yellow', 'a red eight on a yellow background']
    """
    values = {name: np.asarray(value).tolist() for name, value in attributes._asdict().items()}
    said = []
    for i, template in enumerate(np.asarray(templates).tolist()):
        _, plain, slots = _PARSED[template]
        words = [phrases[tuple(values[name][i] for name in names)] for names, phrases in slots]
        said.append("".join(map("".join, zip(plain, [*words, ""], strict=True))))
    return said


def caption(attributes: Attributes, template: int) -> str:
    """The caption of one picture, its attributes being integers.

    >>> caption(Attributes(digit=8, ink=7, paper=0, size=0, row=2, column=0), 3)
    'an orange 8 on black'
    """
    one = Attributes(*(np.asarray(value)[None] for value in attributes))
    return captions(one, np.array([template]))[0]
