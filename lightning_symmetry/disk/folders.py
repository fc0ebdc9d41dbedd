"""Which files of a folder are checkpoints, and which of them belong together."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lightning_symmetry.disk.files import CheckpointError

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of files written by ``torch.save``."""
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
"""Suffixes of all files with tensors."""
_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
EXPECTED = f"a file that ends in .safetensors, {', '.join(TORCH_SUFFIXES)}, or an index, *.safetensors.index.json"
"""The files that a user may name, in words."""

# A folder with one of these is a model of the Hugging Face Hub; its other files belong to it. The first match counts.
_MODELS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")

# What the Hugging Face Trainer, accelerate (`optimizer_1.bin`, `random_states_0`), DeepSpeed, torchtune and others
# write beside the weights: optimizers, schedulers, scalers, random states, arguments.
_NO_MODELS = re.compile(
    r"((lr_)?scheduler|(grad_)?scaler|optim(izer)?|rng_states?|random_states|training_args|train_args|sampler|"
    r"dl_state_dict)([_.-]?(state|rank|\d))*\.(pt|pth|bin)|.*_optim_states\.pt"
)


def checkpoints_at(path: Path) -> list[Path]:
    """Return the checkpoints at a path, at least one: the file itself, whatever its name is, or those of a folder.

    For a folder with a model of the Hugging Face Hub, this is the model, or the index of its shards. For any other
    folder, these are all checkpoints in it and below, sorted; sharded ones by their index. Files that trainers write
    beside the weights, such as ``optimizer.pt``, are recognised by name and left out.

    Raises:
        FileNotFoundError: if the path does not exist.
        CheckpointError: if the folder has no checkpoint.
    """
    if not os.path.lexists(path):  # opening a dangling link raises a clear error by itself
        raise FileNotFoundError(f"Expected argument `path` to be a file or a folder but there is no {str(path)!r}.")
    if not path.is_dir():
        return [path]
    if found := _checkpoints_in(path):
        return found
    raise CheckpointError(f"Expected the folder {str(path)!r} to hold {EXPECTED}, but there is none.")


def is_index(path: Path) -> bool:
    """Return whether a file is the index of a sharded checkpoint, going by its name."""
    return path.name.endswith(_INDEX_SUFFIXES)


def _checkpoints_in(folder: Path) -> list[Path]:
    for name in _MODELS:
        if (folder / name).is_file():
            return [folder / name]
    entries = sorted(folder.iterdir())
    known = [entry for entry in entries if entry.is_file() and (is_index(entry) or entry.suffix in SUFFIXES)]
    files = [file for file in known if not _NO_MODELS.fullmatch(file.name)]
    # The shards of `model.safetensors.index.json` are named like `model-00001-of-00002.safetensors`.
    stems = [file.name.removesuffix(".index.json").rpartition(".")[0] for file in files if is_index(file)]
    shards = [re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.\w+") for stem in stems]
    found = [file for file in files if not any(pattern.fullmatch(file.name) for pattern in shards)]
    folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    return found + [file for inner in folders for file in _checkpoints_in(inner)]
