"""How to read a metric, from its name alone: which direction is better, and what it cannot say.

A report knows no metric but by its name in the log; what it must know of one stands here.
"""

HIGHER_IS_BETTER = (
    *("precision", "recall", "density", "coverage", "accuracy", "similarity"),
    *("clip_score", "inception_score", "psnr", "ssim"),
)
"""Last words of names of metrics that count what samples get right. Add yours if it does."""

SHARES = ("precision", "recall", "coverage", "accuracy")
"""Those of them that are shares, between 0 and 1."""

NEIGHBOURS = ("precision", "recall", "density", "coverage", "memorization")
"""Those that count who is near whom, and mean nothing far from the data."""

REMARKS = {
    "trajectory_error": "Says nothing of stochastic samplers, whose paths are not meant to agree, "
    "and rewards averages where budgets are tiny."
}
"""By metric, what a reader must know lest its numbers mislead."""


def remark(metric: str) -> str:
    """What a reader must know of a metric, or nothing."""
    if _ends_in(metric, NEIGHBOURS):
        return (
            "Counts neighbours, which noise can have in any number: samples whose Frechet distance "
            "is over ten times that of real ones are in brackets, not ranked, and not drawn."
        )
    return REMARKS.get(metric, "")


def companions(metric: str) -> list[str]:
    """Distances that say whether samples are near enough to the data for a metric of neighbours.

    >>> companions("judge_precision"), companions("mmd")
    (['judge_frechet', 'frechet'], [])
    """
    if not _ends_in(metric, NEIGHBOURS):
        return []
    prefix = metric.rstrip("_@0123456789").rpartition("_")[0]
    own = f"{prefix}_frechet" if prefix else "frechet"
    return list(dict.fromkeys((own, "frechet", "judge_frechet")))


def higher_is_better(metric: str) -> bool:
    """Whether a name ends in one of `HIGHER_IS_BETTER`, but for a number (`precision_5`).

    All other metrics are distances and errors.

    >>> higher_is_better("text_similarity"), higher_is_better("coverage_error")
    (True, False)
    """
    return _ends_in(metric, HIGHER_IS_BETTER)


def is_share(metric: str) -> bool:
    """Whether a name ends in one of `SHARES`, but for a number.

    >>> is_share("digit_accuracy"), is_share("density")
    (True, False)
    """
    return _ends_in(metric, SHARES)


def _ends_in(metric: str, names: tuple[str, ...]) -> bool:
    words = "_" + metric.lower().rstrip("_@0123456789")
    return words.endswith(tuple(f"_{name}" for name in names))
