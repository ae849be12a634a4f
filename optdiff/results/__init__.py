"""The log of a study: one row a job in `results/<study>/rows.jsonl`, and its artifact beside it.

This room owns what a row is and the key that names a job (`row`), and how they are kept (`log`).
Running jobs belongs to `experiments`, where rows come from to `provenance`, tables and figures to
`report`; no model, sampler or jax is imported here.
"""

from optdiff.results.log import (
    append,
    appended,
    claim,
    finished,
    load,
    load_artifact,
    remember,
    write,
)
from optdiff.results.row import Row, config_key, identity, leaves

__all__ = [
    "Row",
    "append",
    "appended",
    "claim",
    "config_key",
    "finished",
    "identity",
    "leaves",
    "load",
    "load_artifact",
    "remember",
    "write",
]
