"""Rows and traces for the tests of reports."""

import numpy as np

from optdiff.report.figures import TRACES
from optdiff.results import config_key


def job(sampler="ddim", asked=8, seed=0, value=1.0, **changes):
    """A row as a sweep would write it: labels, configuration and key agree."""
    labels = {"sampler": sampler, "nfe_asked": asked, "seed": seed}
    config = {"sampler": sampler, "nfe": asked, "seed": seed}
    config |= {"problem": changes.get("problem"), "grid": changes.get("grid")}
    config |= changes.pop("config", {})
    known = {"nfe": float(asked), "passes": float(asked)}
    known |= {"metrics": {"w2": value}, "floor": {"w2": 0.01}}
    if "error" in changes:
        known = {"status": "failed", "nfe": None, "passes": None, "metrics": {}, "floor": {}}
    row = {
        "key": config_key(config),
        "source": "aaaa",
        "status": "ok",
        "error": None,
        "problem": "digits",
        "sampler": "ddim",
        "grid": "karras",
        "config": config,
        "levels": [80.0, 1.0, 0.002],
        "nfe_asked": 8,
        "nfe": 8.0,
        "passes": 8.0,
        "seed": 0,
        "samples": 512,
        "metrics": {"sliced_w2": 0.25},
        "floor": {"sliced_w2": 0.01},
        "seconds_compile": 1.0,
        "seconds_run": 0.1,
        "seconds_metrics": 0.2,
        "versions": {"python": "3.11"},
        "device": "cpu",
        "commit": None,
        "dirty": None,
        "time": "2026-01-01T00:00:00+00:00",
    }
    return row | labels | known | changes


def traces(seed, steps):
    draw = np.random.default_rng(seed)
    arrays = {name: draw.uniform(0.1, 0.9, (steps, 4)) for name, _ in TRACES}
    arrays["cosine"][0] = np.nan
    return arrays | {"sigma": np.geomspace(80, 0.002, steps)}


def cells_of(text, heading):
    """A table of table.md as {(method, column): text}."""
    lines = text[text.index(f": {heading} (") :].split("\n\n")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {(r[0], c): cell for r in rows[2:] for c, cell in zip(rows[0][1:], r[1:], strict=True)}
