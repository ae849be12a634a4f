"""Which samplers are one sampler: `python experiments/identities.py` reads it off their matrices.

Writes outputs/identities/README.md (what each linear sampler's matrix says, and which coincide) and
matrices.svg (some of them side by side).
"""

from pathlib import Path

import hydra
import jax
import jax.numpy as jnp
import numpy as np
from _build import build
from omegaconf import DictConfig, OmegaConf

from optdiff.analysis.coefficients import (
    Coefficients,
    NotLinear,
    amplification,
    coefficients,
    learning_rates,
    memory,
    orders,
)
from optdiff.noise import variance_exploding
from optdiff.report.frames import svg
from optdiff.report.matrices import matrices
from optdiff.results import write

SAMPLERS = Path(__file__).parents[1] / "conf" / "sampler"
STDS = np.geomspace(0.01, 10.0, 31)  # of the Gaussian data on which stability is looked at


def configurations(names: list[str] | None, variants: dict) -> dict[str, dict]:
    """Every sampler yaml that is complete, or those of these names, and the variants, by name."""
    names = sorted(path.stem for path in SAMPLERS.glob("*.yaml")) if names is None else names
    composed = hydra.compose(overrides=[f"+sampler@{name}={name}" for name in names])
    samplers = {name: composed[name] for name in names}
    samplers = {n: config for n, config in samplers.items() if not OmegaConf.missing_keys(config)}
    for name, changes in variants.items():
        changes = dict(changes)
        samplers[name] = OmegaConf.merge(samplers[changes.pop("sampler")], changes)
    return {n: OmegaConf.to_container(config, resolve=True) for n, config in samplers.items()}


def probe(samplers: dict[str, dict], levels) -> tuple[dict[str, Coefficients], list[str]]:
    """The matrices of the linear ones, and the names of the others."""
    linear, others = {}, []
    for name, config in samplers.items():
        try:
            linear[name] = coefficients(build(config), levels)
        except NotLinear:
            others.append(name)
    return linear, others


def coinciding(linear: dict[str, Coefficients], tolerance: float) -> list[list[str]]:
    """Names in groups whose matrices agree, the others alone."""
    groups: list[list[str]] = []
    for name, one in linear.items():
        for group in groups:
            if _agree(one, linear[group[0]], tolerance):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _agree(one: Coefficients, other: Coefficients, tolerance: float) -> bool:
    if one.gradients.shape != other.gradients.shape:
        return False
    gap = np.abs(one.gradients - other.gradients).max()
    starts, points = np.abs(one.start - other.start).max(), np.abs(one.points - other.points).max()
    return max(gap, starts, points) <= tolerance * np.abs(one.gradients).max()


def table(linear: dict, uniform: dict, groups: list[list[str]], others: list[str]) -> str:
    """What the matrices say, a line for each sampler that differs from the others."""
    lines = [
        "| sampler | evaluations a step | order conditions | learning rate | memory | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group in sorted(groups, key=lambda group: group[0].lower()):
        one, even = linear[group[0]], uniform[group[0]]
        rates = learning_rates(one)
        spread = f"{rates.min():.2f}"
        if rates.max() - rates.min() > 5e-3:
            spread += f" to {rates.max():.2f}"
        factors = np.array([amplification(one, std) for std in STDS])
        worst = factors[np.argmax(np.abs(np.log(np.abs(factors))))]
        lines.append(
            f"| {' = '.join(group)} | {one.evals} | {orders(even)[-1]} | {spread} | "
            f"{memory(one)[-1]:.2f} | {round(worst, 2) + 0.0:.2f} |"  # and never -0.00
        )
    return "\n".join([*lines, "", f"Not linear, or noisy: {', '.join(others)}."])


def headed(config: DictConfig, body: str, groups: list[list[str]]) -> str:
    """The table with what its columns mean."""
    one = [f"- {' = '.join(group)}" for group in groups if len(group) > 1]
    return "\n".join(
        [
            "# Which samplers are one sampler",
            "",
            "    python experiments/identities.py out=results/identities",
            "",
            f"On {config.levels} Karras levels from {config.sigma_max:g} to {config.sigma_min:g}, "
            "in float64; parameters are those of the yamls, or as named. These have the same "
            f"matrix, to {float(config.same):g}:",
            "",
            *one,
            "",
            "![Matrices of linear samplers side by side](matrices.svg)",
            "",
            body,
            "",
            "**Order conditions**: how many the last step meets exactly on levels uniform in "
            "sigma; methods in log sigma meet those beyond the first only in the limit. "
            "**Learning rate**: the weights of a step together, in units of DDIM's; 1 keeps the "
            "noise level. **Memory**: the share of the last step's weights, by size, on gradients "
            "of earlier steps. **Worst**: on Gaussian data of the least favourable width between "
            "0.01 and 10, the standard deviation at the last level in units of the exact one; 1 is "
            "exact.",
            "",
        ]
    )


@hydra.main(version_base="1.3", config_path="../conf", config_name="identities")
def main(config: DictConfig) -> None:
    schedule = variance_exploding(config.sigma_min, config.sigma_max)
    samplers = configurations(config.samplers, OmegaConf.to_container(config.variants))
    with jax.enable_x64(True):
        levels = build(OmegaConf.to_container(config.grid))(schedule, config.levels)
        linear, others = probe(samplers, jnp.asarray(levels, float))
        even = jnp.linspace(config.sigma_max, config.sigma_min, config.levels, dtype=float)
        uniform, _ = probe({name: samplers[name] for name in linear}, even)
    groups = coinciding(linear, config.same)
    shown = {
        name: linear[name].moves / np.diff(linear[name].levels)[:, None] for name in config.figure
    }
    text = headed(config, table(linear, uniform, groups, others), groups)
    write(config.out, {"README.md": text.encode(), "matrices.svg": svg(matrices(shown))})
    print(text)


if __name__ == "__main__":
    main()
