"""Grids: where to step. Each is a function of a noise schedule and the number of levels.

A grid returns n levels, decreasing, the first of them the highest; the driver's `finish` owns what
happens after the last. "Schedule" is what the model was trained on, "grid" where we step. Here are
those known beforehand: spaced in the noise level (`levels`), by the quantiles of a distribution
(`quantiles`), in the trained time (`trained`), or listed (`tables`); and those that rise in
between, for the sampler that restarts (`restarts`). The grid that is fitted to a problem has to
sample it, so it is `analysis.gits`.
"""

from optdiff.grids.levels import (
    SIGMA_CAP,
    cosine,
    karras,
    linear_sigma,
    polyexponential,
    sigmoid,
    uniform_logsnr,
)
from optdiff.grids.quantiles import beta, laplace, log_normal
from optdiff.grids.restarts import restart_levels, with_restarts
from optdiff.grids.tables import ays_sd15, ays_sdxl, ays_svd, explicit, interpolated
from optdiff.grids.trained import (
    beta_time,
    dpm_leading,
    dpm_linspace,
    euler_linspace,
    leading,
    linspace,
    polynomial,
    rounded_linspace,
    shifted_flow,
    skipping,
    trailing,
)

__all__ = [
    "SIGMA_CAP",
    "ays_sd15",
    "ays_sdxl",
    "ays_svd",
    "beta",
    "beta_time",
    "cosine",
    "dpm_leading",
    "dpm_linspace",
    "euler_linspace",
    "explicit",
    "interpolated",
    "karras",
    "laplace",
    "leading",
    "linear_sigma",
    "linspace",
    "log_normal",
    "polyexponential",
    "polynomial",
    "restart_levels",
    "rounded_linspace",
    "shifted_flow",
    "sigmoid",
    "skipping",
    "trailing",
    "uniform_logsnr",
    "with_restarts",
]
