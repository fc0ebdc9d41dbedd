"""Files to tensors, which stay in their file until they are looked at; code that a file brings along never runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.disk.folders import EXPECTED, TORCH_SUFFIXES, is_index

# Where the state dict of a model is kept, apart from the checkpoint itself being one.
_PLACES = ("state_dict", "model", "module", "model_state_dict")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # what PyTorch wrote before version 1.6
_MAX_KEYS = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and says what was expected."""


@dataclass
class Contents:
    """What a checkpoint holds.

    Attributes:
        tensors: by name.
        step: completed optimizer steps, as Lightning notes them; 0 if the file does not say.
        hyper_parameters: the arguments of the module, as Lightning notes them; None if the file has none.
        monitors: what the :class:`~lightning_symmetry.SymmetryMonitor` of the training has left in the file.
        is_mapped: whether the tensors lie in the file, of which only what is looked at gets into memory.
    """

    tensors: dict[str, Tensor]
    step: int = 0
    hyper_parameters: dict[str, Any] | None = None
    monitors: list[dict[str, Any]] = field(default_factory=list)
    is_mapped: bool = True


def read(path: Path) -> Contents:
    """Read a checkpoint; tensors are mapped from the file where its format allows that.

    Args:
        path: a file, or the index of several.

    Raises:
        CheckpointError: if the file is none of a checkpoint, is damaged, or holds more than tensors and plain data.
        OSError: if it cannot be opened.
        ModuleNotFoundError: if it takes safetensors, which is not installed.
    """
    if is_index(path):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return Contents(_read_safetensors(path))
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise CheckpointError(f"Expected {EXPECTED}, but got {str(path)!r}.")


def _read_shards(index: Path) -> Contents:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({_beside(index, name) for name in names})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Expected {str(index)!r} to be the index of a checkpoint in shards, with the names of files beside it "
            f"under 'weight_map', but reading it failed with {type(error).__name__}: {error}"
        ) from error
    parts = [read(shard) for shard in shards]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return Contents(tensors, is_mapped=all(part.is_mapped for part in parts))


def _beside(index: Path, name: str) -> Path:
    # A name that leads elsewhere may be meant to have another file read, and an index in an index would have no end.
    if Path(name).name != name or is_index(Path(name)):
        raise ValueError(f"{name!r} is not the name of a file of tensors beside the index")
    return index.parent / name


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`scan` expects safetensors to be installed for .safetensors files: pip install 'lightning-symmetry[scan]'",
            name="safetensors",
        ) from error
    with path.open("rb"):  # says what the system has against it, in the words of the system
        pass
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # it is no dict
    except SafetensorError as error:
        raise CheckpointError(f"Expected {str(path)!r} to be a whole safetensors file, but: {error}") from error


def _read_torch(path: Path) -> Contents:
    with path.open("rb") as file:
        begin = file.read(len(_ZIP))
    is_mapped = begin == _ZIP
    if not is_mapped and not begin.startswith(_PICKLE):
        raise CheckpointError(f"Expected {str(path)!r} to be a file of torch.save, but it begins with {begin!r}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(_why_unreadable(path, error)) from error
    tensors = _state_dict(path, content)
    if not isinstance(content, Mapping):
        return Contents(tensors, is_mapped=is_mapped)
    step, arguments, callbacks = (content.get(key) for key in ("global_step", "hyper_parameters", "callbacks"))
    return Contents(
        tensors,
        step=step if isinstance(step, int) else 0,
        hyper_parameters=dict(arguments) if isinstance(arguments, Mapping) else None,
        monitors=_monitors(callbacks) if isinstance(callbacks, Mapping) else [],
        is_mapped=is_mapped,
    )


def _why_unreadable(path: Path, error: Exception) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
    if refused:
        name = refused[1]
        return (
            f"{str(path)!r} is refused: to load it, {name} would have to be called. Expected nothing but tensors and "
            "plain data, such as a `state_dict()`. If you know the file, and the name is that of a harmless class, "
            "allow it with torch.serialization.add_safe_globals."
        )
    lines = str(error).splitlines() or [""]
    return (
        f"Expected {str(path)!r} to be a whole file of torch.save with a state dict, but reading it failed with "
        f"{type(error).__name__}: {lines[0]}"
    )


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    nested = [content.get(place) for place in _PLACES] if isinstance(content, Mapping) else []
    for candidate in (*nested, content):
        if isinstance(candidate, Mapping):
            tensors = {str(name): tensor.detach() for name, tensor in candidate.items() if isinstance(tensor, Tensor)}
            if tensors:
                return tensors
    raise CheckpointError(
        f"{str(path)!r} holds no tensors: expected a state dict, or one under {', '.join(map(repr, _PLACES))}, "
        f"but got {_in_words(content)}."
    )


def _in_words(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    shown = ", ".join(map(repr, list(content)[:_MAX_KEYS])) + (", ..." if len(content) > _MAX_KEYS else "")
    return f"a dict with the keys {shown}" if content else "an empty dict"


def _monitors(callbacks: Mapping[object, Any]) -> list[dict[str, Any]]:
    return [
        state
        for key, state in callbacks.items()
        if str(key).startswith("SymmetryMonitor") and isinstance(state, dict) and state
    ]
