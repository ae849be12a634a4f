"""The lecture's opening: `python experiments/descend.py` draws digits by plain gradient descent.

Writes outputs/lecture/descent.png (noise becomes digits by subtracting a constant times the
gradient, again and again) and gradients.md (one gradient against a finite difference per pixel).
"""

import time
from pathlib import Path

import hydra
import jax
import jax.numpy as jnp
import numpy as np
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig

from optdiff.problems import digits, energy, mixture
from optdiff.sample import identity, sample, sample_keys

H = 1e-6  # of the finite differences


def descend(config: DictConfig) -> np.ndarray:
    """Pictures (rows, iterations shown, 28, 28) on the way from noise to digits."""
    problem, sampler = instantiate(config.problem), instantiate(config.sampler)
    keys = sample_keys(config.seed, config.rows)
    noise = jax.vmap(lambda key: config.sigma * jax.random.normal(key, (28, 28)))(keys)
    _, trace = sample(
        problem,
        sampler,
        jnp.full(config.shown[-1] + 1, config.sigma),  # the level never changes
        keys,
        x=noise,
        finish=identity,
        observe=lambda step: step.x_next,
    )
    path = np.concatenate([noise[None], trace.observed])[np.array(config.shown)]
    return np.asarray(problem.decode(path)).swapaxes(0, 1)


def draw(pictures: np.ndarray, shown: list[int], path: Path) -> None:
    """One row for each sample, one column for each iteration, ink on paper."""
    framed = np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2)))
    rows, columns, height, width = framed.shape
    sheet = framed.swapaxes(1, 2).reshape(rows * height, columns * width)
    figure = Figure(figsize=(columns * 0.75, rows * 0.75 + 0.25), dpi=192, facecolor="white")
    axes = figure.add_axes((0, 0, 1, rows * 0.75 / (rows * 0.75 + 0.25)))
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.axis("off")
    for column, steps in enumerate(shown):
        label = f"{steps} steps" if steps else "noise"
        axes.text((column + 0.5) * width, -2, label, size=8, color="#444444", ha="center")
    figure.savefig(path, metadata={"Software": None})


def seconds(function, *arguments, repeats: int) -> float:
    """Median time of a call that is already compiled."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def gradients(name: str, problem, sigma: float) -> list[str]:
    """Rows of a table: three ways to the gradient of log p at a noisy sample, in float64."""
    problem = jax.tree.map(
        lambda a: a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a, problem
    )
    sigma = jnp.asarray(sigma, float)
    x = problem.prior(sample_keys(0, 1), sigma)
    density = jax.jit(lambda problem, x: problem.log_density(x, sigma)[0])
    score = jax.jit(lambda problem, x: (problem.denoise(x, sigma) - x) / sigma**2)

    def differences(problem, x):
        nudges = H * np.eye(x.size).reshape(x.size, *x.shape)
        here = density(problem, x)
        return np.array([density(problem, x + nudge) - here for nudge in nudges]) / H

    exact, table = np.ravel(score(problem, x)), []
    for way, calls, function, of, repeats in (
        ("closed form", 1, score, problem, 20),
        ("autodiff", 1, score, energy(problem), 20),
        ("finite differences", x.size + 1, differences, problem, 1),
    ):
        error = np.abs(np.ravel(function(of, x)) - exact).max() / np.abs(exact).max()
        took = 1e3 * seconds(function, of, x, repeats=repeats)
        off = "" if of is problem and function is score else f"{error:.0e}"
        table.append(f"| {name} | {way} | {calls} | {took:,.2f} ms | {off} |")
    return table


@hydra.main(version_base="1.3", config_path="../conf", config_name="descend")
def main(config: DictConfig) -> None:
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    draw(descend(config), list(config.shown), out / "descent.png")
    with jax.enable_x64(True):  # differences of a log-density in the thousands need the digits
        table = [
            "| log p of | its gradient by | calls | time | differs by |",
            "| --- | --- | ---: | ---: | ---: |",
            *gradients("digits: 784 pixels", digits(), config.sigma),
            *gradients("mixture: 16 coordinates", mixture(), config.sigma),
            "",
            f"At one noisy sample at sigma = {config.sigma:g}, in float64, on a "
            f"{jax.devices()[0].device_kind}, jax {jax.__version__}. Differences are the largest "
            "of any entry from the closed form, relative to its largest entry.",
        ]
    (out / "gradients.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
