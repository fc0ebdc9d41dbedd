"""Reads files as tensors whose numbers stay in the file until they are needed. Never executes code from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.brief import brief, printable
from lightning_symmetry.disk.files import CheckpointError as CheckpointError
from lightning_symmetry.disk.files import Place, StoredFile
from lightning_symmetry.disk.folders import EXPECTED, SUFFIXES, TORCH_SUFFIXES, is_index
from lightning_symmetry.disk.formats import Archive, is_plain, places_in_safetensors
from lightning_symmetry.verdicts.tables import first_of

_KEYS = ("state_dict", "model", "module", "model_state_dict")  # under which checkpoints hold a state dict
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # the format of PyTorch before version 1.6
# Keys of entries beside the model that hold no weights.
_NO_WEIGHTS = re.compile(
    r"(^|[_.-])(optim\w*|scheduler\w*|scaler|rng\w*|random\w*|callbacks?|loops|hyper\w*|args?|config|metrics?|history)"
    r"([_.-]|$)"
)
_MAX_DEPTH = 8
_MAX_KEYS = 8
_MAX_REASON = 300
# The tensors may claim this many times the size of the file: tied weights and views of one buffer share numbers.
_MAX_SHARED = 4


class NoModelError(CheckpointError):
    """A readable file without weights, such as the state of an optimizer."""

    __module__ = "lightning_symmetry.disk.checkpoints"


@dataclass
class Contents:
    """The contents of a checkpoint."""

    tensors: dict[str, Tensor]  # tensors by name; placeholders for those in ``places``
    places: dict[str, Place] = field(default_factory=dict)  # where the numbers of placeholders lie, by name
    left_out: dict[str, str] = field(default_factory=dict)  # by name, why a tensor is not read
    num_unread: int = 0  # numbers that the file holds for tensors with a fault, plus 1 for each other tensor left out
    step: int = 0  # completed optimizer steps, stored by Lightning; 0 if unknown
    # arguments of the module, stored by Lightning; None if the file has none
    hyper_parameters: dict[str, Any] | None = None
    # states of the training's :class:`~lightning_symmetry.SymmetryMonitor` callbacks
    monitors: list[dict[str, Any]] = field(default_factory=list)


def read(path: Path) -> Contents:
    """Read which tensors a file or the shards of an index hold; if the format allows it, their numbers stay there.

    Raises:
        CheckpointError: if a file is no checkpoint, is damaged, or holds more than tensors and plain data.
        OSError: if it cannot be opened.
    """
    contents, size = _read_shards(path) if is_index(path) else _read_file(path)
    claimed = sum(place.claimed for place in set(contents.places.values()))
    if claimed > _MAX_SHARED * size:
        raise CheckpointError(
            f"{str(path)!r} is refused: its tensors claim {claimed:,} bytes of a file of {size:,}, so many of them "
            "share numbers, which those of a model do not. Save copies: "
            "torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)"
        )
    return contents


def _read_file(path: Path) -> tuple[Contents, int]:
    """Return the contents of one file, and its size."""
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"Expected {EXPECTED}, but got {str(path)!r}.")
    file = StoredFile(path)
    is_torch = path.suffix in TORCH_SUFFIXES
    return _read_torch(file) if is_torch else _of_places(*places_in_safetensors(file)), file.size


def _of_places(places: Mapping[str, Place], left_out: Mapping[str, str]) -> Contents:
    faults = {name: fault for name, place in places.items() if (fault := place.fault())}
    good = {name: place for name, place in places.items() if name not in faults}
    num_unread = len(left_out) + sum(places[name].held for name in faults)
    tensors = {name: place.placeholder() for name, place in good.items()}
    return Contents(tensors, good, {**left_out, **faults}, num_unread)


def _read_shards(index: Path) -> tuple[Contents, int]:
    file = StoredFile(index)
    content = file.read(0, file.size)
    try:
        weight_map = json.loads(content)["weight_map"]
        shards = sorted({_beside(index, name) for name in weight_map.values()})
        if not shards:
            raise ValueError("it names no file")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"Expected {str(index)!r} to be the index of a checkpoint in shards, with the names of files beside it "
            f"under 'weight_map', but reading it failed with {_in_short(error)}"
        ) from error
    whole, size = Contents({}), 0
    for shard in shards:
        part, part_size = _read_file(shard)
        size += part_size
        whole.tensors |= part.tensors
        whole.places |= part.places
        whole.left_out |= part.left_out
        whole.num_unread += part.num_unread
    missing = [name for name in weight_map if name not in whole.tensors and name not in whole.left_out]
    whole.left_out |= dict.fromkeys(missing, "the index has it, its file does not")
    whole.num_unread += len(missing)
    return whole, size


def _beside(index: Path, name: str) -> Path:
    # A path could make this program read any file, and an index that names an index could loop.
    if Path(name).name != name or not name.isprintable() or is_index(Path(name)):
        raise ValueError(f"{brief(name)} is not the name of a file of tensors beside the index")
    return index.parent / name


def _read_torch(file: StoredFile) -> Contents:
    begin = bytes(file.read(0, min(len(_ZIP), file.size)))
    if not begin:
        raise CheckpointError(f"Expected {str(file.path)!r} to be a file of torch.save, but it is empty.")
    if begin != _ZIP and not begin.startswith(_PICKLE):
        raise CheckpointError(f"Expected {str(file.path)!r} to be a file of torch.save, but it begins with {begin!r}.")
    try:
        content, archive = _load(file, begin)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or foreign file can raise anything
        raise CheckpointError(_why_unreadable(file.path, error)) from error
    contents = _placed(_state_dict(file.path, content), archive)
    if isinstance(content, Mapping):
        keys = ("global_step", "hyper_parameters", "callbacks")
        stored = [content.get(key) for key in keys]
        step, arguments, callbacks = archive.with_numbers(stored) if archive else stored
        contents.step = step if type(step) is int else 0
        contents.hyper_parameters = dict(arguments) if isinstance(arguments, Mapping) else None
        if isinstance(callbacks, Mapping):
            ours = [state for key, state in callbacks.items() if str(key).startswith("SymmetryMonitor")]
            contents.monitors = [state for state in ours if isinstance(state, dict) and state]
    return contents


def _load(file: StoredFile, begin: bytes) -> tuple[object, Archive | None]:
    """Return the object in a ``torch.save`` file, and its archive if the numbers are still in the file."""
    if begin == _ZIP:
        with suppress(NotImplementedError):  # PyTorch cannot make quantised and nested tensors without numbers
            archive = Archive(file)
            return archive.content, archive
    return torch.load(file.path, map_location="cpu", weights_only=True), None


def _placed(tensors: Mapping[str, Tensor], archive: Archive | None) -> Contents:
    """Sort tensors into those with numbers in the archive, those in memory, and those that cannot be read."""
    no_file: Any = None  # `fault` reads no file
    places: dict[str, Place] = {}
    here: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for name, tensor in tensors.items():
        place = archive.place_of(tensor) if archive else None
        if place is not None:
            places[name] = place
        elif archive is not None or not is_plain(tensor) or tensor.is_meta:
            left_out[name] = _why_not_plain(tensor)
        elif fault := Place.of(tensor, no_file, 0, tensor.untyped_storage().nbytes()).fault():
            left_out[name] = fault
        else:
            here[name] = tensor.detach()
    contents = _of_places(places, left_out)
    contents.tensors |= here
    return contents


def _why_not_plain(tensor: Tensor) -> str:
    if tensor.is_nested:
        return "it is a nested tensor, which this package does not read"
    if tensor.is_quantized:
        return "it is quantised, which this package does not read"
    if tensor.layout != torch.strided:
        return f"its layout {tensor.layout} is not strided"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"it is a {type(tensor).__name__}, which this package does not read"
    return "it was saved without numbers, as on the meta device"


def _why_unreadable(path: Path, error: Exception) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
    if refused:
        return (
            f"{str(path)!r} is refused: to load it, {refused[1]} would have to be called. Expected nothing but tensors "
            "and plain data, such as a `state_dict()`. If you know the file, and the name is that of a harmless class, "
            "allow it with torch.serialization.add_safe_globals."
        )
    return (
        f"Expected {str(path)!r} to be a whole file of torch.save with a state dict, but reading it failed with "
        f"{_in_short(error)}"
    )


def _in_short(error: Exception) -> str:
    # PyTorch wraps the cause in advice on `weights_only`.
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines() or [""]
    return f"{type(error).__name__}: {printable(lines[0][:_MAX_REASON])}"


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    nested = [content.get(key) for key in _KEYS] if isinstance(content, Mapping) else []
    for candidate in (*nested, content):
        if isinstance(candidate, Mapping):
            tensors = {str(name): tensor for name, tensor in candidate.items() if isinstance(tensor, Tensor)}
            if tensors:
                return tensors
    # The file may hold several models, such as a generator and a discriminator, or a model in a deeper dict.
    if isinstance(content, Mapping) and (tensors := dict(_tensors_within(content))):
        return tensors
    raise NoModelError(
        f"{str(path)!r} holds no tensors: expected a state dict, or one under {', '.join(map(repr, _KEYS))}, "
        f"but got {_in_words(content)}. Save one with torch.save(model.state_dict(), path)."
    )


def _tensors_within(content: Mapping[object, Any], start: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts with their paths, without those of optimizers, schedulers and the like."""
    if "param_groups" in content or depth > _MAX_DEPTH:
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{start}{key}", value
        elif isinstance(value, Mapping) and not _NO_WEIGHTS.search(str(key).lower()):
            yield from _tensors_within(value, f"{start}{key}.", depth + 1)


def _in_words(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = [brief(key) for key in islice(content, _MAX_KEYS + 1)]
    return f"a dict with the keys {first_of(keys, _MAX_KEYS)}" if content else "an empty dict"
