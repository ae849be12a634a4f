"""Problems: denoisers to sample from. Those here have exact answers."""

from optdiff.problems.digits import Digits, digits
from optdiff.problems.energy import Energy, energy
from optdiff.problems.gaussian import Gaussian, gaussian
from optdiff.problems.mixture import Mixture, mixture

__all__ = [
    "Digits",
    "Energy",
    "Gaussian",
    "Mixture",
    "digits",
    "energy",
    "gaussian",
    "mixture",
]
