"""Checkpoints: folders in the layout of diffusers and transformers, into modules and out of them.

This file owns what a folder holds: which class is which family, and that a save is all there or not
there. The pipeline's index is in `model_index.py`. Names, shapes and types are matched in
`assign.py`, files read in `tensorfile.py`, fetched by `hub.py`; the original single-file layout is
in `single_file.py`. How a pipeline's parts work together, and what its scheduler's config means, is
left to others.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from optdiff.nn import single_file
from optdiff.nn.assign import Family, Names, check, draft, fill, foreign_arrays
from optdiff.nn.clip.tokenizer import load_tokenizer, save_tokenizer
from optdiff.nn.families import FAMILIES, class_name_of
from optdiff.nn.hub import locate, weight_files
from optdiff.nn.model_index import EMPTY, MODULES, TEXT_ENCODERS, TOKENIZERS, WORDS_OF, read_index
from optdiff.nn.tensorfile import (
    CheckpointError,
    Tensor,
    appearing,
    holds,
    open_file,
    open_folder,
    read_json,
    write_folder,
    write_json,
)
from optdiff.nn.unsupported import READ, by_folder

_DESCRIPTIONS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in MODULES),
    *(f"{part}/*" for part in TOKENIZERS),
]
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
SHARD_BYTES = 10 * 10**9


@dataclass(frozen=True)
class Pipeline:
    """The parts of a Stable Diffusion checkpoint, all weights of one type.

    Attributes:
      unet: predicts what the scheduler's `prediction_type` says.
      vae: between images and latents.
      text_encoders: one (SD 1.x, 2.x) or two (SDXL); None where a checkpoint leaves the place
        empty, as the SDXL refiner does with its first.
      tokenizers: of `transformers`, beside their text encoders.
      scheduler: the parsed `scheduler_config.json`, as it stands.
      settings: what else `model_index.json` says, such as `_class_name` and
        `force_zeros_for_empty_prompt`.
    """

    unet: nnx.Module
    vae: nnx.Module
    text_encoders: tuple[nnx.Module | None, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Mapping[str, Any]
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {"_class_name": "StableDiffusionPipeline"}
    )


def load(
    path_or_repo: str | Path,
    *,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    like: str | Path | None = None,
    revision: str | None = None,
) -> Pipeline:
    """Load a whole Stable Diffusion checkpoint.

    Every part comes in one type, whatever types the files have. Tensors are read one at a time into
    modules that were never initialized, so the peak in memory is little more than the weights.

    Args:
      path_or_repo: a folder in the diffusers layout, a hub repository `owner/name` that holds one,
        or a single `.safetensors` file in the original SD 1.x layout.
      dtype: what all parameters are stored in.
      variant: the word in the weight files' names, such as `fp16`. Parts that have none, where
        another has, are read from their plain files, with a warning.
      like: with a single file, the folder or repository that describes the same geometry: its
        configs, tokenizer and scheduler are used and its weights are not.
      revision: branch, tag or commit of the hub repository.

    Returns:
      The pipeline.

    Raises:
      CheckpointError: one error for all tensors of all parts that are missing, unexpected,
        mis-shaped or mistyped; and for anything in the files that cannot be trusted or understood.

    >>> load("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=jnp.bfloat16)  # doctest: +SKIP
    """
    root = locate(path_or_repo, checkpoint_files(variant), revision)
    original = None
    if root.is_file():
        original, root = single_file.parts(open_file(root)), _described(root, like)
    elif like is not None:
        raise CheckpointError(f"{root}: a folder describes itself; like= goes with a single file")
    if kind := by_folder(root):
        raise CheckpointError(f"{root}: this is {kind}, which is not supported yet; {READ}")
    classes, settings = read_index(root)
    scheduler = read_json(root / "scheduler" / "scheduler_config.json")
    tokenizers = {part: _tokenizer(root / part) for part in TOKENIZERS if classes.get(part)}
    families = {part: _family(root / part, classes[part]) for part in MODULES if classes.get(part)}
    for part in families.keys() & WORDS_OF.keys():
        _check_words(root / part, families[part][1], tokenizers[WORDS_OF[part]])
    variants = dict.fromkeys(families, variant)
    if original is None and (plain := _without(root, families, variant)):
        # Fetched only now: most variants are there for every part, and then plain files are not.
        locate(path_or_repo, _weights(plain, None), revision)
        warnings.warn(
            f"{root}: no {variant} weights of {', '.join(plain)}: plain ones", stacklevel=2
        )
        variants |= dict.fromkeys(plain)
    drafts = {}
    for part, (family, config) in families.items():
        if original is None:
            tensors = open_folder(root / part, STEMS[family.library], variants[part])
            names = _names(root / part, family.names, config, tensors)
        else:
            tensors = single_file.share(original, part)
            names = _names(root / part, partial(single_file.names, part, family), config, tensors)
        drafts[part] = draft(family, config, names, tensors, _float(dtype))
    check(drafts)
    modules = {part: fill(drafts.pop(part)) for part in list(drafts)}
    encoders = {part: words for part, words in WORDS_OF.items() if part in classes}
    return Pipeline(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoders=tuple(modules.get(part) for part in encoders),
        tokenizers=tuple(tokenizers.get(encoders[part]) for part in encoders),
        scheduler=scheduler,
        settings=settings,
    )


def checkpoint_files(variant: str | None = None) -> list[str]:
    """Patterns of the files that `load` reads in a folder or repository.

    >>> "unet/config.json" in checkpoint_files()
    True
    """
    return _DESCRIPTIONS + _weights(MODULES, variant)


def load_module(
    path_or_repo: str | Path,
    *,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    revision: str | None = None,
) -> nnx.Module:
    """Load one network from its own folder, such as a UNet, an autoencoder or a whole CLIP.

    Args:
      path_or_repo: the folder that holds `config.json` and the weights, or a hub repository.
      dtype: what all parameters are stored in.
      variant: the word in the weight files' names, such as `fp16`.
      revision: branch, tag or commit of the hub repository.

    Returns:
      The module; its geometry is its `config`.

    Raises:
      CheckpointError: as for `load`.

    >>> load_module("stabilityai/sd-vae-ft-mse")  # doctest: +SKIP
    """
    weights = [name for stem in STEMS.values() for name in weight_files(stem, variant)]
    root = locate(path_or_repo, ["config.json", *weights], revision)
    family, config = _family(root)
    tensors = open_folder(root, STEMS[family.library], variant)
    names = _names(root, family.names, config, tensors)
    drafted = draft(family, config, names, tensors, _float(dtype))
    check({str(root): drafted})
    return fill(drafted)


def save(path: str | Path, pipeline: Pipeline, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a pipeline as a folder that diffusers, transformers and `load` read.

    The folder appears under its name when all of it is on disk, and not before.

    Args:
      path: the folder to make; nothing may be there yet.
      pipeline: what to write.
      shard_bytes: weights larger than this are split into several files with an index.

    Raises:
      FileExistsError: something is at `path` already.

    >>> save("my-checkpoint", load("my-checkpoint.safetensors", like="sd15"))  # doctest: +SKIP
    """
    index = dict(pipeline.settings)
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False  # there is none to save
    with appearing(path) as root:
        modules = dict(zip(TEXT_ENCODERS, pipeline.text_encoders, strict=False))
        for part, module in {"unet": pipeline.unet, "vae": pipeline.vae, **modules}.items():
            index[part] = _save_module(root / part, module, shard_bytes) if module else EMPTY
        for part, tokenizer in zip(TOKENIZERS, pipeline.tokenizers, strict=False):
            index[part] = ["transformers", "CLIPTokenizer"] if tokenizer else EMPTY
            if tokenizer:
                save_tokenizer(root / part, tokenizer)
        (root / "scheduler").mkdir()
        write_json(root / "scheduler" / "scheduler_config.json", dict(pipeline.scheduler))
        index["scheduler"] = ["diffusers", pipeline.scheduler["_class_name"]]
        write_json(root / "model_index.json", index)


def save_module(path: str | Path, module: nnx.Module, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write one network as a folder that diffusers or transformers, and `load_module`, read.

    Args:
      path: the folder to make; nothing may be there yet.
      module: a network with its geometry as its `config`.
      shard_bytes: weights larger than this are split into several files with an index.

    Raises:
      FileExistsError: something is at `path` already.

    >>> from tempfile import TemporaryDirectory
    >>> from optdiff.nn.vae.config import VAEConfig
    >>> from optdiff.nn.vae.model import VAE
    >>> vae = VAE(VAEConfig(block_out_channels=(32,)), rngs=nnx.Rngs(0))
    >>> with TemporaryDirectory() as folder:
    ...     save_module(f"{folder}/vae", vae)
    ...     load_module(f"{folder}/vae").config == vae.config
    True
    """
    with appearing(path) as root:
        _save_module(root, module, shard_bytes)


def _weights(parts: Iterable[str], variant: str | None) -> list[str]:
    """Patterns of a pipeline's files of weights."""
    names = [name for stem in STEMS.values() for name in weight_files(stem, variant)]
    return [f"{part}/{name}" for part in parts for name in names]


def _without(
    root: Path, families: Mapping[str, tuple[Family, Any]], variant: str | None
) -> list[str]:
    """The parts that a variant does not have, if it has any: as in diffusers, they come plain."""
    missing = [
        part
        for part, (family, _) in families.items()
        if not holds(root / part, STEMS[family.library], variant)
    ]
    return missing if variant and len(missing) < len(families) else []


def _names(
    folder: Path, table: Callable[[Any], Names], config: Any, tensors: Mapping[str, Tensor]
) -> Names:
    """A network's table of names, which is made by building it: not if its tensors cannot do."""
    if (least := config.least_tensors) > len(tensors):
        raise CheckpointError(
            f"{folder / 'config.json'}: describes a network of {least} tensors at least, but there "
            f"are {len(tensors)}"
        )
    return table(config)


def _check_words(folder: Path, config: Any, tokenizer: Any) -> None:
    """JAX reads the nearest row of a table where PyTorch raises: look before, at every prompt's."""
    for name in ("bos", "eos", "pad"):
        if (i := getattr(tokenizer, f"{name}_token_id")) >= config.vocab_size:
            raise CheckpointError(
                f"{folder / 'config.json'}: vocab_size = {config.vocab_size}, but its tokenizer's "
                f"{name}_token has id {i}"
            )


def _float(dtype: Any) -> Any:
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise ValueError(f"dtype={dtype}: weights are kept in a type of floating-point numbers")
    return jnp.dtype(dtype)


def _family(folder: Path, class_name: str | None = None) -> tuple[Family, Any]:
    """Which network a folder describes, and its geometry."""
    path = folder / "config.json"
    described = read_json(path)
    class_name = class_name or class_name_of(described)
    if class_name not in FAMILIES:
        raise CheckpointError(
            f"{path}: {class_name} is not a network that can be loaded; "
            f"those are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[class_name]
    if family.library == "transformers":
        described["architectures"] = [class_name]  # the index knows better than an old file
    try:
        return family, family.config(described)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _described(file: Path, like: str | Path | None) -> Path:
    """The folder that says what the tensors of a single file mean."""
    if like is None:
        raise CheckpointError(
            f"{file}: a single file holds neither configs nor tokenizer; pass like=FOLDER, a "
            "diffusers folder or hub repository of the same geometry, whose weights are not read "
            "(for SD 1.x like='stable-diffusion-v1-5/stable-diffusion-v1-5')"
        )
    if (folder := locate(like, _DESCRIPTIONS)).is_dir():
        return folder
    raise CheckpointError(f"like={like}: a file; it must be a folder in the diffusers layout")


def _tokenizer(folder: Path) -> Any:
    try:
        return load_tokenizer(folder)
    except (OSError, ValueError) as error:  # they name the file
        raise CheckpointError(str(error)) from error


def _save_module(folder: Path, module: nnx.Module, shard_bytes: int) -> list[str]:
    described = module.config.to_dict()
    family = FAMILIES[class_name_of(described)]
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", described)
    arrays = foreign_arrays(family.names(module.config), module)
    write_folder(folder, STEMS[family.library], arrays, shard_bytes)
    return [family.library, class_name_of(described)]
