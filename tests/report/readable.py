"""Whether a figure can be read: where its names are, and that no text lies on another."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg


def names_of(axes):
    """The texts beside the frame of a panel, which name its lines."""
    return {text.get_text(): text for text in axes.texts if text.get_position()[0] > 1}


def assert_readable(figure):
    """No two texts of a figure overlap, and all lie within it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):  # ticks beyond limits are not drawn
            low, high = sorted(axis.get_view_interval())
            texts += [t for t in axis.get_ticklabels() if low <= t.get_position()[place] <= high]
    boxes = {t: t.get_window_extent(renderer) for t in texts if t.get_visible() and t.get_text()}
    page = figure.bbox
    for text, box in boxes.items():
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text
    for (a, one), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not (
            one.x0 < other.x1 - 1
            and other.x0 < one.x1 - 1
            and one.y0 < other.y1 - 1
            and other.y0 < one.y1 - 1
        ), (a, b)
