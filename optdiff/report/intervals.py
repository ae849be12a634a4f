"""How sure a mean is, and which differences are more than the luck of the draw.

**What may be exchanged.** Sample i of seed s is drawn by key (s, i): its noise, its prompt, its
part of the reference. Judge, data and prompts are the study's, the same for all seeds. So a seed is
nothing but a set of independent samples, and the samples of all seeds are draws alike. A metric
of a set does not give a value for each of them, but a row says by how much each of G groups of its
samples pulls the metric (`spread`, a jackknife: `analysis.measuring`). Value plus pull of S seeds
are S G numbers that are, to first order, independent and alike. A row without spread (an older one,
or one whose metric is no affair of single samples) counts as one number: then the S values of the
seeds are all there is.

**Intervals.** Of n such numbers, `mean ± t s / sqrt(n)`, s their standard deviation, t the 97.5%
quantile of Student's law with n - 1 degrees of freedom (Student 1908). With two seeds and no spread
t is 12.7: two numbers know little. A share near 1 is no normal number; there Wilson's interval
(1927) is taken, at the size of sample that its standard error amounts to.

**Comparisons.** Methods share noise, prompts and reference, so differences to the best are taken
pairwise: group by group, or seed by seed. Which method comes out best is itself luck, so a
difference must exceed what the largest such statistic does by chance in 95% of columns of so many
equal methods (max-t, after Dunnett 1955, the best chosen from the data). Of equal methods, a column
tells any apart one time in twenty.
"""

import functools

import numpy as np
from jaxtyping import Float
from scipy import stats

from optdiff.report.cells import Board, Cell, Interval, loss, side
from optdiff.report.reading import is_share

DRAWS = 20_000
MOST_DRAWN = 20  # methods; of more, all pairs are counted (Bonferroni), which asks a little more


def interval(values: Float[np.ndarray, "n"]) -> Interval:
    """Student's 95% interval of a mean of independent values, None where there is but one.

    >>> [round(end, 3) for end in interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(_quantile(len(values)) * _error(values))
    return Interval(mean, mean - half, mean + half)


def share_interval(values: Float[np.ndarray, "n"], samples: int) -> Interval:
    """Wilson's interval of a share: all p with `(mean - p)^2 <= t^2 p (1 - p) / m`.

    m is the size of sample that the standard error e of the values amounts to, `p (1 - p) / e^2` at
    their mean; where they do not differ, the number of samples.

    >>> low, high = share_interval(np.ones(8), 100)[1:]
    >>> round(low, 3), round(high, 3)
    (0.947, 1.0)
    """
    mean = float(np.mean(values))
    if len(values) < 2 or not 0 <= mean <= 1:
        return interval(values)
    error = _error(values)
    size = mean * (1 - mean) / error**2 if error > 0 and 0 < mean < 1 else samples
    square = _quantile(len(values)) ** 2 / max(size, 1e-9)
    middle = (mean + square / 2) / (1 + square)
    half = np.sqrt(square * mean * (1 - mean) + square**2 / 4) / (1 + square)
    return Interval(mean, max(float(middle - half), 0.0), min(float(middle + half), 1.0))


def summary(cell: Cell, metric: str) -> Interval | None:
    """Mean and interval of a cell in a metric, None if no ok row has it."""
    if not (values := cell.values.get(metric)):
        return None
    exchangeable = _exchangeable(values, cell.spread.get(metric, {}))
    if is_share(metric):
        return share_interval(exchangeable, cell.samples * len(values))
    return interval(exchangeable)


def marks(board: Board, metric: str, budget: int) -> dict[str, str]:
    """Who is "best" in a column, whose difference to the best may be chance ("tie"), whose not
    ("worse"); no word on who does not compete.

    Where it is known what real samples score, the best is the closest to that (`cells.side`). A
    method that lacks a seed, failed or never run, does not compete, for its mean over the others
    might flatter it; nor does one whose samples are so far from the data that the metric means
    nothing there (`cells.astray`). One value of each decides nothing: then all but the best are
    without a word.
    """
    cells, means, gaps = {}, {}, {}
    for method in board.methods:
        cell = board.cells.get((method, budget))
        whole = cell and cell.values.get(metric, {}).keys() == set(board.seeds)
        if whole and (mean := loss(cell, metric)) is not None:
            cells[method], means[method] = cell, mean
            raw = np.mean([*cell.values[metric].values()])
            gaps[method] = abs(raw - cell.floor.get(metric, 0.0))
    if len(cells) < 2:
        return {}
    best = min(cells, key=lambda method: (means[method], gaps[method]))
    marked = {best: "best"}
    for method in cells.keys() - {best}:
        worse = _worse(cells[method], cells[best], metric, len(cells))
        if worse is not None:
            marked[method] = "worse" if worse else "tie"
    return marked


def _worse(cell: Cell, best: Cell, metric: str, methods: int) -> bool | None:
    """Whether a cell's loss exceeds the best one's by more than chance; None if unknowable.

    The values must differ beyond chance, not the losses alone: where two values lie on either side
    of the floor, their losses differ by an estimate of it, too.

    Two shares of N samples that differ by d differ in N |d| samples at least, so the variance of
    the difference is |d| / N or more, even where few seeds happen to agree.
    """
    ours, theirs = _paired(cell, best, metric)
    if len(ours) < 2:
        return None
    losses = [
        side(one, metric) * (values - one.floor.get(metric, 0.0))
        for one, values in ((cell, ours), (best, theirs))
    ]
    for differences in (losses[0] - losses[1], ours - theirs):
        mean, error = float(np.mean(differences)), _error(differences)
        if is_share(metric):
            samples = cell.samples * len(cell.values[metric])
            error = max(error, np.sqrt(abs(mean) / samples))
        if abs(mean) <= critical(methods, len(ours)) * error + 1e-12 * np.abs(ours).max():
            return False
    return float(np.mean(losses[0] - losses[1])) > 0


@functools.cache
def critical(methods: int, n: int) -> float:
    """What the largest of the statistics `mean / (s / sqrt(n))` of differences to the best of so
    many equal methods exceeds in one of twenty columns, each a mean of n independent values.

    By simulation with a fixed key, the values normal and of one variance; with other variances
    fewer are told apart. With two methods it is Student's quantile.
    """
    if methods <= 2:
        return _quantile(n)
    if methods > MOST_DRAWN:
        return float(stats.t.isf(0.05 / (methods * (methods - 1)), n - 1))
    draw, largest = np.random.default_rng(0), []
    at_once = max(1, 2_000_000 // (methods * n))
    for first in range(0, DRAWS, at_once):
        count = min(at_once, DRAWS - first)
        values = draw.standard_normal((count, methods, n))
        best = values.mean(axis=2).argmin(axis=1)
        differences = values - values[np.arange(count), best][:, None]
        error = differences.std(axis=2, ddof=1) / np.sqrt(n)
        error[np.arange(count), best] = np.inf
        largest.append((differences.mean(axis=2) / error).max(axis=1))
    return float(np.quantile(np.concatenate(largest), 0.95))


def _paired(cell: Cell, best: Cell, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of two cells in pairs that share noise: of groups if both have them, or seeds."""
    spreads = [one.spread.get(metric, {}) for one in (cell, best)]
    seeds = list(cell.values[metric])
    if any(len(spreads[0].get(seed, ())) != len(spreads[1].get(seed, ())) for seed in seeds):
        spreads = [{}, {}]
    ours, theirs = (
        _exchangeable({seed: one.values[metric][seed] for seed in seeds}, spread)
        for one, spread in zip((cell, best), spreads, strict=True)
    )
    return ours, theirs


def _exchangeable(values: dict[int, float], spread: dict) -> Float[np.ndarray, "n"]:
    """Value plus pull of each group of each seed, or the values of the seeds where some have no
    spread."""
    if not all(spread.get(seed) for seed in values):
        return np.array([*values.values()])
    # Groups of unequal size have pulls whose mean is not 0, but the mean is the value's.
    pulls = {seed: np.asarray(spread[seed]) - np.mean(spread[seed]) for seed in values}
    return np.concatenate([value + pulls[seed] for seed, value in values.items()])


def _error(values: Float[np.ndarray, "n"]) -> float:
    """Standard error of a mean; differences that are rounding are none."""
    spread = float(np.std(values, ddof=1))
    return 0.0 if spread < 1e-12 * np.abs(values).max() else spread / np.sqrt(len(values))


@functools.cache
def _quantile(n: int) -> float:
    return float(stats.t.isf(0.025, n - 1))
