"""Which files of a folder are checkpoints, and which of them belong together."""

from __future__ import annotations

import os
import re
from pathlib import Path

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
"""What files written by ``torch.save`` are called."""
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
"""What the index of a checkpoint is called that is split over several files, its shards."""
EXPECTED = f"a file that ends in .safetensors, {', '.join(TORCH_SUFFIXES)}, or an index, *.safetensors.index.json"
"""What a user may name, in words."""

# A folder with one of these is a model of the Hugging Face Hub, whose other files belong to it. The first one counts.
_MODELS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")

# What trainers leave beside the weights: optimizers, schedulers, scalers, random numbers, arguments. Those of the
# Hugging Face Trainer, accelerate (`optimizer_1.bin`, `random_states_0`), DeepSpeed, torchtune and their like.
_NO_MODELS = re.compile(
    r"((lr_)?scheduler|(grad_)?scaler|optim(izer)?|rng_states?|random_states|training_args|train_args|sampler|"
    r"dl_state_dict)([_.-]?(state|rank|\d))*\.(pt|pth|bin)|.*_optim_states\.pt"
)


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints at a path.

    Args:
        path: a file, which counts as a checkpoint whatever its name is, or a folder.

    Returns:
        The file; of a folder with a model of the Hugging Face Hub, the model or the index of its shards; of any other
        folder, all checkpoints in it and in the folders below, sorted. A checkpoint in shards is named by its index.
        What a trainer leaves beside the weights, going by the name, such as ``optimizer.pt``, is none.

    Raises:
        FileNotFoundError: if there is nothing at the path.
    """
    if not os.path.lexists(path):  # a link that leads nowhere is left to whoever opens it
        raise FileNotFoundError(f"Expected argument `path` to be a file or a folder but there is no {str(path)!r}.")
    if not path.is_dir():
        return [path]
    for name in _MODELS:
        if (path / name).is_file():
            return [path / name]
    entries = sorted(path.iterdir())
    files = [
        entry for entry in entries if entry.is_file() and is_checkpoint(entry) and not _NO_MODELS.fullmatch(entry.name)
    ]
    stems = [_stem(file) for file in files if is_index(file)]
    found = [file for file in files if not any(_is_shard(file, stem) for stem in stems)]
    folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    return found + [file for folder in folders for file in checkpoints_in(folder)]


def is_index(path: Path) -> bool:
    """Whether a file is the index of a checkpoint in shards, going by its name."""
    return path.name.endswith(INDEX_SUFFIXES)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint or the index of one, going by its name."""
    return is_index(path) or path.suffix in (".safetensors", *TORCH_SUFFIXES)


def _stem(index: Path) -> str:
    """How the shards of an index are called: ``model`` for ``model.safetensors.index.json``."""
    return index.name.removesuffix(".index.json").rpartition(".")[0]


def _is_shard(file: Path, stem: str) -> bool:
    return re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.\w+", file.name) is not None
