"""Figures can be read: scales, names that keep off each other, and the samples themselves."""

import itertools
from functools import partial

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from readable import assert_readable, names_of
from report_rows import job

from optdiff.report import _traces, figures, frames, pictures, report
from optdiff.report.cells import Board, boards
from optdiff.results import append, load, load_artifact


@pytest.mark.parametrize("count", [2, 6, 14])
def test_quality_figure_is_labelled_and_readable(tmp_path, count):
    draw = np.random.default_rng(count)
    for i, nfe, seed in itertools.product(range(count), [4, 5, 6, 8, 10, 12, 16, 32], range(2)):
        error = (1 + i / 99) * nfe**-1.5 * draw.uniform(0.9, 1.1)
        unbiased = error**4 + draw.normal(0, 1e-5)
        metrics = {"w2": error, "mmd": unbiased, "coverage": 1 - error, "energy": error**2}
        real = {"nfe": float(nfe - i % 2), "floor": {"w2": 1e-3, "mmd": -1e-6, "coverage": 0.97}}
        append(tmp_path, job(frames.SAMPLERS[i], nfe, seed, metrics=metrics, **real))
    found = boards(load(tmp_path))
    figure = figures.quality(found)
    assert_readable(figure)
    first, mmd, coverage, energy = figure.axes
    methods = set(frames.SAMPLERS[:count])
    for axes in figure.axes:
        assert methods <= set(names_of(axes)) and axes.get_xscale() == "log"
        assert "NFE" in axes.get_xlabel()
    scales = [axes.get_yscale() for axes in figure.axes]
    assert scales == ["log", "symlog", "function", "log"]
    assert "real vs real" in names_of(coverage) and "real vs real" not in names_of(energy)
    assert first.bbox.width > 1.8 * mmd.bbox.width
    # Lines stand at the evaluations really made, in as many looks as there are methods.
    lines = [line for line in first.lines if len(line.get_xdata()) == 8]
    assert sorted(line.get_xdata()[0] for line in lines) == [3] * (count // 2) + [4] * (
        count - count // 2
    )
    looks = {(line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in lines}
    assert len(lines) == len(looks) == count
    assert len(first.collections) == count  # bands


def test_shares_near_one_are_drawn_apart():
    """0.95 and 0.98 like 0.5 and 0.8, whatever failed; a density has an axis as it is."""
    shares = np.array([0.01, 0.5, 0.8, 0.95, 0.98, 1.0])
    axes = Figure().add_subplot()
    frames.scale_of("accuracy", shares, shares, shares, np.ones(1)).put_on(axes, "y")
    places = axes.transAxes.inverted().transform(
        axes.transData.transform(np.column_stack([np.ones(6), shares]))
    )[:, 1]
    assert places[0] > 0 and places[-1] < 1
    np.testing.assert_allclose(places[2] - places[1], places[4] - places[3], rtol=0.05)
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "1"
    assert frames.scale_of("density", shares, shares, shares, np.ones(1)).kind == "linear"


@pytest.mark.parametrize("low, high", [(0.96, 0.975), (0.82, 0.89), (0.85, 0.94), (0.97, 0.97)])
def test_a_narrow_range_of_shares_has_numbers_on_its_axis(low, high):
    shares = np.array([low, high])
    axes = Figure().add_subplot()
    frames.scale_of("accuracy", shares, shares, shares, np.zeros(0)).put_on(axes, "y")
    bottom, top = axes.get_ylim()
    assert sum(bottom <= tick <= top for tick in axes.get_yticks()) > 1


def test_long_subtitles_and_remarks_stay_in_their_panels(tmp_path):
    """A first panel, then two abreast whose subtitles fill several lines each."""
    for (sampler, scale), nfe in itertools.product({"a": 1, "b": 1, "c": 1e9}.items(), [4, 8]):
        metrics = dict.fromkeys(["trajectory_error", "w2", "frechet"], scale / nfe)
        metrics |= {"precision": 1 - 1 / nfe, "recall": 0.9}
        append(tmp_path, job(sampler, nfe, metrics=metrics, floor={"w2": -1e-3, "frechet": -1.0}))
    for primary in ("trajectory_error", "w2"):
        figure = figures.quality(boards(load(tmp_path), primary))
        assert_readable(figure)
        shown = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
        assert "stochastic samplers" in shown and "range of" not in shown and "one seed" in shown


@pytest.mark.parametrize(
    "seeds, first, shown",
    [
        (1, 1.0, "one seed: no"),
        (4, 9.0, "bands: 95% intervals, 4"),
        # 2.5 +- 3.18 * 1.29 / 2, Student's with three degrees, is from 0.446, below 2.5 / 5.
        (4, 1.0, "bands: 95% intervals, cut at a fifth of the mean, 4"),
    ],
)
def test_bands_are_called_what_they_are(tmp_path, seeds, first, shown):
    for sampler, seed in itertools.product("ab", range(seeds)):
        append(tmp_path, job(sampler, 8, seed, value=first + seed))
    (axes,) = figures.quality(boards(load(tmp_path))).axes
    assert any(shown in text.get_text() for text in axes.texts)


def test_a_sampler_has_its_colour_and_mark_whatever_the_others_are():
    looks = [frames.colour_and_mark(name) for name in frames.SAMPLERS]
    assert len(set(looks)) == len(frames.SAMPLERS)

    def styles(*names):
        return frames.styles([Board("p", [], [], [*names], [], [], [], {}, {})])

    few, many = styles("mine", "ddim"), styles("lion", "ddim", "heun", "mine", "ddim, karras")
    for name in ("ddim", "mine"):
        assert few[name][:4] == many[name][:4]
    assert many["ddim, karras"].colour == many["ddim"].colour
    assert many["ddim, karras"].dashes != many["ddim"].dashes


def test_one_method_has_one_colour_throughout(tmp_path):
    for problem, best in (("p", "a"), ("q", "b")):
        for sampler in ("a", "b"):
            row = job(sampler, value=1.0 + (sampler != best), problem=problem)
            append(tmp_path, row)
    figure = figures.quality(boards(load(tmp_path)))
    colours = [{n: t.get_color() for n, t in names_of(axes).items()} for axes in figure.axes]
    assert colours[0] == colours[1] and colours[0]["a"] != colours[0]["b"]


@pytest.mark.parametrize("values, scale", [([0.1, 0.3], "log"), ([-0.1, 0.3], "symlog")])
def test_a_band_is_never_cut_off_at_zero(tmp_path, values, scale):
    for sampler, nfe, seed in itertools.product("ab", [4, 8], range(2)):
        append(tmp_path, job(sampler, nfe, seed, value=values[seed] if sampler == "a" else 2.0))
    (axes,) = figures.quality(boards(load(tmp_path))).axes
    assert axes.get_yscale() == scale  # the means are all positive
    band = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in axes.collections])
    low, high = axes.get_ylim()
    assert low < band.min() and band.max() < high


def test_what_diverged_does_not_flatten_the_others(tmp_path):
    for sampler, value in {"a": 0.1, "b": 0.2, "c": 0.3, "bad": 1e12}.items():
        for nfe in (4, 8):
            append(tmp_path, job(sampler, nfe, value=value))
    (axes,) = figures.quality(boards(load(tmp_path))).axes
    assert axes.get_ylim()[1] < 100 and "bad" in names_of(axes)
    assert any("diverged" in text.get_text() for text in axes.texts)


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=15))
@settings(deadline=None)
def test_spread_keeps_order_distance_and_bounds(wanted):
    placed = frames.spread(np.array(wanted), 5.0, 0.0, 100.0)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) >= 5.0 - 1e-9).all()
    assert placed.min() >= -1e-9 and placed.max() <= 100 + 1e-9
    again = frames.spread(placed, 5.0 - 1e-6, 0.0, 100.0)  # what is apart stays where it is
    np.testing.assert_allclose(again, placed, atol=1e-4)


def test_spread_moves_as_little_as_it_can():
    wanted = np.array([3.0, 3.5, 3.6, 9.0, 9.1])
    placed = frames.spread(wanted, 1.0, 0.0, 20.0)
    order = {"type": "ineq", "fun": lambda heights: np.diff(heights) - 1.0}
    best = scipy.optimize.minimize(
        lambda heights: ((heights - wanted) ** 2).sum(), np.arange(5.0) * 3, constraints=order
    )
    np.testing.assert_allclose(placed, best.x, atol=1e-5)


def test_diagnostics_draw_medians_at_the_largest_common_budget(study):
    (board,) = boards(load(study))
    budget, found = _traces(partial(load_artifact, study), board)
    assert budget == 16 and set(found) == {"ddim", "heun", "adam"}  # adam has one ok seed there
    figure = figures.diagnostics([board], {board.problem: (budget, found)})
    assert_readable(figure)
    keys = [r["key"] for r in load(study) if (r["sampler"], r["nfe_asked"]) == ("ddim", 16)]
    for axes, (name, label) in zip(figure.axes, figures.TRACES, strict=True):
        pooled = np.concatenate([load_artifact(study, key)[name] for key in keys], axis=1)
        skip = 1 if name == "cosine" else 0  # there is no gradient before the first
        medians = np.median(pooled, axis=1)[skip:]
        drawn = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) > 2]
        assert any(len(d) == len(medians) and np.allclose(d, medians) for d in drawn)
        assert axes.get_ylabel() == label and axes.xaxis_inverted()
        assert set(names_of(axes)) == {"ddim", "heun", "adam"}


def enlarged(image):
    k = round(pictures.SIDE / 6)
    return np.round(255 * np.clip(np.kron(image, np.ones((k, k))), 0, 1))


def test_samples_stand_in_their_own_pixels(study, text):
    picture = np.round(255 * imread(study / "samples.png")[..., :3])
    (board,) = boards(load(study))
    rows = [*board.methods, "exact"]
    side, gap = 60, pictures.GAP
    cell = 4 * side + 3 * 2
    label = picture.shape[1] - 3 * (cell + gap)
    assert picture.shape[0] == pictures.HEAD + 4 * (side + gap)
    noise = np.random.default_rng(0).random((4, 6, 6))  # seed 0 in every cell
    exact = np.random.default_rng(9).random((4, 6, 6))
    for row, column in itertools.product(range(4), range(3)):
        x, y = label + column * (cell + gap), pictures.HEAD + row * (side + gap)
        for i in range(4):
            left = x + i * (side + 2)
            shown = picture[y : y + side, left : left + side]
            if rows[row] == "adam" and column == 0:  # no job
                assert (shown == 255).mean() > 0.8
                continue
            images = exact if rows[row] == "exact" else noise * (1 + (column == 0))
            np.testing.assert_array_equal(shown[..., 0], enlarged(images[i]))


@pytest.fixture
def sheets(monkeypatch):
    """The sheets that are drawn, in place of their pixels."""
    drawn = []
    monkeypatch.setattr(
        pictures.Sheet, "pixels", lambda sheet: drawn.append(sheet) or np.zeros((9, 9, 3), "u1")
    )
    return drawn


def test_the_picture_says_what_was_asked_for(tmp_path, sheets):
    words = [f"a very {'very ' * 9}long prompt, number {i}" for i in range(3)]
    append(tmp_path, job("good"), {"samples": np.full((3, 60, 60), 0.5), "words": words})
    report(tmp_path)
    (sheet,) = sheets
    texts = " ".join(text.get_text() for text in sheet.figure.texts)
    assert "from the left: " + ", ".join(f"“{each}”" for each in words) in texts
    assert_readable(sheet.figure)


def test_a_title_wider_than_the_cells_is_whole(tmp_path, sheets):
    row = job("good") | {"problem": "a_problem_of_a_long_name"}
    append(tmp_path, row, {"samples": np.full((1, 60, 60), 0.5)})
    report(tmp_path)
    (sheet,) = sheets
    assert any("long_name: samples" in text.get_text() for text in sheet.figure.texts)
    assert_readable(sheet.figure)


def test_a_failed_cell_is_red(tmp_path):
    append(tmp_path, job("good"), {"samples": np.full((1, 60, 60), 0.5)})
    append(tmp_path, job("bad", error="ValueError: no"))
    report(tmp_path)
    picture = imread(tmp_path / "samples.png")
    red = (picture[..., 0] > picture[..., 1] + 0.3).nonzero()[0]
    assert len(red) and red.min() >= pictures.HEAD + 60 + pictures.GAP  # in the second row


@pytest.mark.parametrize("shape", [(2, 5, 7, 1), (2, 5, 7, 3), (1, 300, 200, 3), (64, 2), (9, 1)])
def test_all_kinds_of_samples_are_shown(tmp_path, shape):
    samples = np.random.default_rng(0).random(shape)
    samples[0, ..., 0] = np.nan
    append(tmp_path, job("a", 4), {"samples": samples})
    append(tmp_path, job("b", 8), {"samples": samples})
    report(tmp_path)
    picture = imread(tmp_path / "samples.png")
    assert picture.shape[1] < 1000 and (picture < 0.9).any()


def test_of_many_traces_the_best_are_named():
    draw, count = np.random.default_rng(0), figures.MANY + 5
    of_method = {
        f"m{i:02}": {name: draw.uniform(0.1, 0.9, (4, 3)) for name, _ in figures.TRACES}
        | {"sigma": np.geomspace(80, 0.1, 4)}
        for i in range(count)
    }
    board = Board("p", [], [], list(of_method), [], [], [], {}, {})
    figure = figures.diagnostics([board], {"p": (8, of_method)})
    assert_readable(figure)
    best = set(list(of_method)[: len(frames.PALETTE)])
    for axes in figure.axes:
        assert set(names_of(axes)) == best
        assert sum(len(line.get_xdata()) == 4 for line in axes.lines) == count
        assert any("are named" in text.get_text() for text in axes.texts)


def test_a_single_step_has_no_cosine_and_is_drawn_all_the_same(tmp_path):
    one = {"sigma": np.ones(1), "gradient_norm": np.ones((1, 2)), "distance": np.ones((1, 2))}
    append(tmp_path, job(asked=2), one | {"cosine": np.full((1, 2), np.nan)})
    report(tmp_path)
    assert (tmp_path / "diagnostics.svg").stat().st_size > 0
