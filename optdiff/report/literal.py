"""Text that users wrote (labels, prompts, errors), as what it is in each medium: letters.

Matplotlib reads dollars as mathematics, Markdown takes tags and stars, a spreadsheet runs what
begins with `=`, and XML has no place for control characters. Whatever draws or writes such text
calls one of these first; nothing else in `report` escapes.
"""

import hashlib
import re

CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
DRAWN, WRITTEN, STORED = 44, 120, 1000  # letters, at most


def drawn(text: str, most: int = DRAWN) -> str:
    """For Matplotlib: no mathematics, no control characters, at most so many letters.

    >>> drawn("$5 off, $10")
    '\\\\$5 off, \\\\$10'
    """
    return bounded(text, most).replace("$", r"\$")


def markdown(text: str) -> str:
    r"""For a cell or a line of Markdown: no markup, no tags, no table of its own.

    >>> markdown("a|b <script> *c*")
    'a\\|b &lt;script> \\*c\\*'
    """
    text = bounded(text, WRITTEN).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text)


def spreadsheet(text: str) -> str:
    """For a field of CSV: no formula.

    >>> spreadsheet("=cmd|' /C calc'!A0"), spreadsheet("ddim")
    ("'=cmd|' /C calc'!A0", 'ddim')
    """
    text = bounded(text, STORED)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") and text.strip() else text


def bounded(text: str, most: int) -> str:
    """A line without control characters, of at most so many letters; what is cut out of the middle
    of a long one is named by four letters of its hash, so that different ones stay different.

    >>> bounded("a" * 60, 20), bounded("two\\nlines", 20)
    ('aaaaaaa…11ee…aaaaaaa', 'two lines')
    """
    text = CONTROLS.sub(" ", text)
    if len(text) <= most:
        return text
    mark = f"…{hashlib.sha256(text.encode()).hexdigest()[:4]}…"
    end = (most - len(mark)) // 2
    return text[: most - len(mark) - end] + mark + text[-end:]
