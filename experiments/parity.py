"""generate.py beside PyTorch's pipeline, for every scheduler class: the largest difference.

    python experiments/parity.py [FOLDER OUT]

Makes an image of a prompt by each class's sampler with generate.py, and with the pipeline of the
same folder (by default the shipped model) whose scheduler is `Class.from_config` of the folder's
own, from the same noise; and writes README.md and differences.csv, into results/parity or, for
another folder, OUT. Needs the extra "test", which has PyTorch and diffusers.
"""

import csv
import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

import generate
import hydra
import jax.numpy as jnp
import numpy as np
from _generate import completed, settled
from omegaconf import OmegaConf
from PIL import Image

from optdiff.keys import fold_in, sample_keys
from optdiff.noise import scaled_linear
from optdiff.provenance import provenance
from optdiff.results import write
from optdiff.samplers.renoise import split, standard_normal

try:
    import diffusers
    import torch
except ImportError:
    sys.exit('parity.py compares with PyTorch: install the extra "test", pip install -e ".[test]"')

SHIPPED = Path(__file__).parents[1] / "optdiff" / "pretrained" / "digits"
STEPS = (1, 4, 10, 25)
PROMPT = "a red seven on a yellow background"
GUIDANCE = 3.0
COLUMNS = (
    "class", "settings", "sampler", "steps", "nfe", "guidance", "seed", "difference", "commit",
    "dirty", "versions",
)  # fmt: skip


class Case(NamedTuple):
    """A scheduler class in one of its settings, called by the pipeline with `options`, and the
    sampler of ours that is its method."""

    name: str
    sampler: Sequence[str]
    settings: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})
    evaluations: int = 1
    note: str = ""

    def nfe(self, steps: int) -> int:
        """What `generate.py` needs for as many steps."""
        again = self.name == "PNDMScheduler" and steps > 1  # its second level is evaluated twice
        return 1 + self.evaluations * (steps - 1) + again

    def asked(self) -> str:
        """What is asked of diffusers' class, in words."""
        return ", ".join(
            f"{key}={getattr(value, '__name__', value)}"
            for key, value in {**self.settings, **self.options}.items()
        )


def tau(t: Any) -> Any:
    """SA-Solver's default in diffusers: noise in the middle."""
    return torch.tensor(1.0 if 200 <= t <= 800 else 0.0)


LOW, HIGH = (float(scaled_linear().sigma(jnp.array(t))) for t in (199.9, 800.1))
V_NOTE = "combines what the network predicts, ours combines the noise: differs where it predicts v"
CASES = (
    Case("DDIMScheduler", ["sampler=ddim"]),
    Case("DDPMScheduler", ["sampler=ddpm"]),
    Case("PNDMScheduler", ["sampler=plms"], {"skip_prk_steps": True}, note=V_NOTE),
    Case("EulerDiscreteScheduler", ["sampler=euler"]),
    Case("EulerAncestralDiscreteScheduler", ["sampler=euler_ancestral"]),
    Case("HeunDiscreteScheduler", ["sampler=heun"], evaluations=2),
    Case("LMSDiscreteScheduler", ["sampler=lms"]),
    Case("KDPM2DiscreteScheduler", ["sampler=dpm2"], evaluations=2),
    Case("KDPM2AncestralDiscreteScheduler", ["sampler=dpm2_ancestral"], evaluations=2),
    Case("DPMSolverMultistepScheduler", ["sampler=dpmpp_2m"], {"solver_order": 2}),
    Case("DPMSolverMultistepScheduler", ["sampler=dpmpp_3m"], {"solver_order": 3}),
    Case(
        "DPMSolverMultistepScheduler", ["sampler=dpmpp_2m_sde"],
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    ),
    Case(
        "DEISMultistepScheduler", ["sampler=deis_log_rho", "sampler.order=2"],
        {"solver_order": 2},
    ),
    Case("UniPCMultistepScheduler", ["sampler=unipc", "sampler.order=2"], {"solver_order": 2}),
    Case(
        "SASolverScheduler",
        ["sampler=sa_solver", f"sampler.tau.low={LOW}", f"sampler.tau.high={HIGH}"],
        {"tau_func": tau}, note="tau is the class's own: 1 for 200 <= t <= 800, 0 elsewhere",
    ),
    Case("LCMScheduler", ["sampler=lcm"]),
    Case("TCDScheduler", ["sampler=tcd"], options={"eta": 0.3}),
)  # fmt: skip


def ours(folder: Path, case: Case, steps: int, out: Path, *arguments: str) -> np.ndarray:
    """The pixels (h, w, 3) of generate.py, which leaves its noise in `out`."""
    count = case.nfe(steps)
    problem = ["problem=stable_diffusion", f"problem.path={folder}"]
    asked = [*problem, f"prompt={PROMPT}", f"nfe={count}", f"out={out}", *case.sampler, *arguments]
    with hydra.initialize_config_dir(str(SHIPPED.parents[2] / "conf"), version_base="1.3"):
        config = hydra.compose("generate", completed(asked))
    config = settled(OmegaConf.to_container(config, resolve=True))
    generate.generate(config, out)
    return np.asarray(Image.open(out / "000.png")).astype(int)


def theirs(pipeline: Any, case: Case, steps: int, noise: np.ndarray, **options: Any) -> np.ndarray:
    """The pixels of PyTorch's pipeline, by this class made of its scheduler.

    At one step most classes begin at their lowest level, and return the noise; ours begins at the
    highest, and so do they if their spacing is "trailing".
    """
    own, settings = pipeline.scheduler, {"clip_sample": False, **case.settings}
    if steps == 1:
        settings["timestep_spacing"] = "trailing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.scheduler = getattr(diffusers, case.name).from_config(own.config, **settings)
        latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
        with drawing(pipeline.scheduler, noise):
            image = pipeline(
                PROMPT,
                latents=latents,
                num_inference_steps=steps,
                output_type="np",
                **case.options,
                **options,
            ).images[0]
    pipeline.scheduler = own
    return np.round(image * 255).astype(int)


@contextmanager
def drawing(scheduler: Any, like: np.ndarray):
    """Let a scheduler draw, at each step, the noise that our samplers draw there."""
    module, keys, calls = sys.modules[type(scheduler).__module__], sample_keys(0, len(like)), []

    def draw(*args, **kwargs):
        calls.append(None)  # once a step
        key = split(fold_in(keys, len(calls)))[1]
        return torch.from_numpy(
            np.array(standard_normal(key, jnp.asarray(like))).transpose(0, 3, 1, 2).copy()
        )

    before = getattr(module, "randn_tensor", None)
    if before is not None:
        module.randn_tensor = draw
    try:
        yield
    finally:
        if before is not None:
            module.randn_tensor = before


def difference(folder: Path, pipeline: Any, case: Case, steps: int, guidance: float) -> int:
    """The largest difference of any pixel, of 255."""
    with TemporaryDirectory() as out:
        mine = ours(folder, case, steps, Path(out) / "made", f"guidance={guidance}")
        noise = np.load(Path(out) / "made" / "latents.npy")
    return int(np.abs(mine - theirs(pipeline, case, steps, noise, guidance_scale=guidance)).max())


def page(folder: Path, rows: list[list[int]], origin: Mapping[str, Any]) -> str:
    """The table, with what is compared and what made it."""
    shipped = folder == SHIPPED
    path = "optdiff/pretrained/digits" if shipped else "FOLDER"
    made_by = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    lines = [
        "# generate.py beside PyTorch's pipeline",
        "",
        f"    python experiments/parity.py{'' if shipped else ' FOLDER OUT'}",
        "",
        "The largest difference of any pixel, of 255, between",
        "",
        f"    python experiments/generate.py problem=stable_diffusion problem.path={path} \\",
        f'        prompt="{PROMPT}" guidance={GUIDANCE:g} nfe=... SAMPLER',
        "",
        "and the pipeline of diffusers with the scheduler `Class.from_config` of the same folder ("
        + ("the shipped model" if shipped else folder.name)
        + "),",
        "with `clip_sample=False` and the settings below, from the same noise, by number of steps.",
        "`nfe` is that number n; where a step takes two evaluations it is 2 n - 1, and for `plms`",
        "n + 1 from two steps up. What a class draws on the way it draws as ours does. At one",
        'step theirs are asked for `timestep_spacing="trailing"`, since most begin at their',
        "lowest level otherwise; ours begins at the highest.",
        "",
        f"| class | its settings | SAMPLER | {' | '.join(map(str, STEPS))} | |",
        f"| --- | --- | --- | {' | '.join('---:' for _ in STEPS)} | --- |",
    ]
    for case, row in zip(CASES, rows, strict=True):
        settings = f"`{case.asked()}`" if case.asked() else ""
        cells = (case.name, settings, f"`{' '.join(case.sampler)}`", *row, case.note)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(
        [
            *lines,
            "",
            "DDIMScheduler and PNDMScheduler step by 1000 // n whatever timestep is asked next.",
            'With `timestep_spacing="linspace"`, and with "trailing" where n does not divide 1000,',
            "a sample of theirs so has another noise level than the network is told, and images",
            "differ. Right is the step to the level that is asked next, as in DDIM's equation 12;",
            "the other classes take it, and ours.",
            "",
            "Not here: DPMSolverSDEScheduler (`sampler=dpmpp_sde`), whose noise comes of another",
            "library; its levels are compared in the tests. DPMSolverSinglestepScheduler looks",
            "ahead at its own next level, as no sampler here; as a file's class it can be read.",
            "",
            f"Made at commit {origin['commit']}{' (changed)' if origin['dirty'] else ''} with",
            f"{made_by}.",
            "",
        ]
    )


def table(rows: list[list[int]], origin: Mapping[str, Any]) -> str:
    """A line for each difference, in CSV, with all that made it."""
    text, versions = io.StringIO(), " ".join("=".join(item) for item in origin["versions"].items())
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for case, row in zip(CASES, rows, strict=True):
        for steps, pixels in zip(STEPS, row, strict=True):
            what = (case.name, case.asked(), " ".join(case.sampler), steps, case.nfe(steps))
            whence = (origin["commit"], origin["dirty"], versions)
            lines.writerow((*what, GUIDANCE, 0, pixels, *whence))
    return text.getvalue()


def main(folder: Path = SHIPPED, out: Path = Path("results/parity")) -> None:
    torch.set_num_threads(1)
    origin = provenance("cpu")
    origin["versions"] |= {name: version(name) for name in ("torch", "diffusers", "transformers")}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    rows = [[difference(folder, pipeline, case, n, GUIDANCE) for n in STEPS] for case in CASES]
    text = page(folder, rows, origin)
    write(out, {"README.md": text.encode(), "differences.csv": table(rows, origin).encode()})
    print(text)


def started(arguments: Sequence[str]) -> None:
    if len(arguments) not in (0, 2):
        sys.exit("parity.py takes no argument, or a folder and where to write: FOLDER OUT")
    main(*map(Path, arguments))


if __name__ == "__main__":
    started(sys.argv[1:])
