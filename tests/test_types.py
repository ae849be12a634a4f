import numpy as np
import pytest

from optdiff.types import within


@within(rate="[0, 1]", count="[1, inf)", most="[1, inf)")
def made(rate: float = 0.5, count: int = 1, most: int | None = None):
    return rate, count, most


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": None},
        {"rate": "0.5"},
        {"rate": True},
        {"rate": [0.5, None]},
        {"rate": np.array([True])},
        {"count": None},
        {"count": 1.5},
        {"count": "2"},
        {"most": 2.5},
        {"most": False},
    ],
)
def test_only_numbers_are_in_a_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} = .*$"):
        made(**wrong)


def test_what_is_in_a_range_passes():
    assert made(1, np.int64(2), None) == (1, 2, None)
    assert made([0.5, 1], count=3, most=2)[0] == [0.5, 1]
