"""From tensors on disk to a module and back: names, layouts, types, and what does not fit.

This file owns the meeting of one module's parameters with named tensors. It knows no foreign name:
those come from each network's `weights.py`. Files are `tensorfile.py`'s business, folders and whole
pipelines are `checkpoint.py`'s.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.tensorfile import FLOATS, CheckpointError, Tensor

Names = Mapping[str, tuple[str, str]]
"""Our parameter's path, joined by dots -> (foreign tensor name, key of `LAYOUTS`)."""

_PROBLEMS = 50  # of one network in a message; of another geometry there are hundreds


class Layout(NamedTuple):
    """How a foreign tensor lies in memory: ours is `foreign[..., 0, 0].transpose(axes)`."""

    axes: tuple[int, ...] | None
    ones: tuple[int, ...] = ()

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The foreign shape of a parameter of ours."""
        return ours if self.axes is None else (*(ours[i] for i in self._back()), *self.ones)

    def foreign(self, ours: np.ndarray) -> np.ndarray:
        """A parameter of ours as a view that lies as theirs do."""
        return (
            ours
            if self.axes is None
            else ours.transpose(self._back()).reshape(self.shape(ours.shape))
        )

    def _back(self) -> list[int]:
        return [self.axes.index(i) for i in range(len(self.axes))]


LAYOUTS = {
    "conv": Layout((2, 3, 1, 0)),  # OIHW -> HWIO
    "linear": Layout((1, 0)),  # (out, in) -> (in, out)
    "conv1x1": Layout((1, 0), (1, 1)),  # (out, in, 1, 1) -> (in, out)
    "same": Layout(None),
}


class Family(NamedTuple):
    """One kind of network: how it is built, and what it is called in files.

    Attributes:
      library: whose class it is a counterpart of, `diffusers` or `transformers`.
      config: parses `config.json`; a ValueError names what it cannot honour.
      build: (config, dtype, rngs) -> a module that stores and computes in `dtype`, with the config
        as its `config`.
      names: the table of a config's parameters.
      canonical: any published spelling of a tensor's name -> the one in `names`.
      spare: a pattern of names that files have beside those, and nothing here depends on.
    """

    library: str
    config: Callable[[Mapping[str, Any]], Any]
    build: Callable[[Any, Any, nnx.Rngs], nnx.Module]
    names: Callable[[Any], Names]
    canonical: Callable[[str], str]
    spare: str = r"(.*\.)?position_ids"


class Draft(NamedTuple):
    """A module that is all shapes yet, the tensor on disk for each parameter, and what is wrong."""

    graphdef: Any
    leaves: list[tuple[Any, nnx.Variable]]
    sources: list[tuple[Tensor, Layout] | None]
    problems: list[str]


def draft(
    family: Family, config: Any, names: Names, tensors: Mapping[str, Tensor], dtype: Any
) -> Draft:
    """Match a module's parameters with tensors by name, shape and kind; no tensor is read.

    Args:
      family: what to build.
      config: its geometry.
      names: its parameters' names in this file.
      tensors: by foreign name, in any spelling that the family knows.
      dtype: what the parameters are to be stored in.

    Returns:
      The draft. Its `problems` are raised together by `check`, so that one error names everything
      that is wrong with a checkpoint.
    """
    shapes = abstract(lambda rngs: family.build(config, dtype, rngs))
    graphdef, state = nnx.split(shapes)
    leaves = nnx.to_flat_state(state)
    problems: list[str] = []
    by_name: dict[str, Tensor] = {}
    due, spare = {name for name, _ in names.values()}, re.compile(family.spare)
    left_out = []
    for spelling, tensor in tensors.items():
        name = family.canonical(spelling)
        if name in by_name:
            problems.append(f"twice: {by_name[name].name} and {spelling} are both {name}")
        elif name in due:
            by_name[name] = tensor
        elif spare.fullmatch(name):
            left_out.append(tensor)
        else:
            problems.append(f"unexpected: {spelling} {tensor.shape} in {tensor.path.name}")
    warn_of(left_out)
    sources = []
    for path, leaf in leaves:
        name, layout = names[".".join(map(str, path))]
        ours = leaf.get_value().shape
        problem = _misfit(name, by_name.get(name), LAYOUTS[layout], ours)
        problems += problem
        sources.append(None if problem else (by_name[name], LAYOUTS[layout]))
    return Draft(graphdef, list(leaves), sources, problems)


def _misfit(name: str, tensor: Tensor | None, layout: Layout, ours: tuple[int, ...]) -> list[str]:
    expected = layout.shape(ours)
    if tensor is None:
        return [f"missing: {name} {expected}"]
    # Some files hold a 1x1 convolution as the matrix that it is.
    if tensor.shape not in (expected, expected[: len(expected) - len(layout.ones)]):
        return [f"mis-shaped: {tensor.name} is {tensor.shape}, expected {expected}"]
    if tensor.dtype not in FLOATS:
        return [f"mistyped: {tensor.name} is {tensor.dtype}, expected {', '.join(sorted(FLOATS))}"]
    return []


def warn_of(left_out: Sequence[Tensor]) -> None:
    """Say in one line which tensors of a file are not read; tables of positions go unmentioned."""
    names = [tensor.name for tensor in left_out if not tensor.name.endswith("position_ids")]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"{left_out[0].path}: left out, as no image depends on it: "
            f"{', '.join(names[:5])}{more}",
            stacklevel=3,
        )


def check(drafts: Mapping[str, Draft]) -> None:
    """Raise everything that is wrong with the drafts, by name, in one error.

    Raises:
      CheckpointError: listing the missing, unexpected, mis-shaped and mistyped tensors of every
        network, fifty at most of each.
    """
    misfits = [
        f"{where} does not match its config.json:\n  " + "\n  ".join(_first(d.problems))
        for where, d in drafts.items()
        if d.problems
    ]
    if misfits:
        raise CheckpointError("\n".join(misfits))


def _first(problems: list[str]) -> list[str]:
    more = [f"and {len(problems) - _PROBLEMS} more"] if len(problems) > _PROBLEMS else []
    return sorted(problems)[:_PROBLEMS] + more


def fill(draft: Draft) -> nnx.Module:
    """Read the tensors of a checked draft into its module, one at a time.

    Each is converted on its way from the file to where it stays, which on a CPU is the memory of
    the parameter itself: the peak in memory is the module.
    """
    filled = []
    for (path, leaf), (tensor, layout) in zip(draft.leaves, draft.sources, strict=True):
        shape = leaf.get_value()
        ours = _aligned(shape.shape, shape.dtype)
        tensor.read_into(layout.foreign(ours))
        filled.append((path, leaf.replace(jax.device_put(ours).block_until_ready())))
    return nnx.merge(draft.graphdef, nnx.from_flat_state(filled))


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array that JAX takes over as it is on a CPU: it copies what starts elsewhere than at
    a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def foreign_arrays(names: Names, module: nnx.Module) -> dict[str, np.ndarray]:
    """A module's parameters by foreign name, in foreign layout, on the host."""
    leaves: Iterable[Any] = nnx.to_flat_state(nnx.state(module))
    arrays = {}
    for path, leaf in leaves:
        name, layout = names[".".join(map(str, path))]
        arrays[name] = LAYOUTS[layout].foreign(np.asarray(leaf.get_value()))
    return arrays
