"""Files to tensors, whose numbers stay in their file until they are looked at; no code of a file is ever run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.brief import brief, printable
from lightning_symmetry.disk.archives import Archive, is_plain
from lightning_symmetry.disk.files import CheckpointError as CheckpointError
from lightning_symmetry.disk.files import Place, StoredFile
from lightning_symmetry.disk.folders import EXPECTED, TORCH_SUFFIXES, is_index
from lightning_symmetry.disk.safetensors_files import places_in_safetensors

# Where the state dict of a model is kept, apart from the checkpoint itself being one.
_PLACES = ("state_dict", "model", "module", "model_state_dict")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # what PyTorch wrote before version 1.6
# What is kept beside a model under such names is not its weights.
_NO_WEIGHTS = re.compile(
    r"(^|[_.-])(optim\w*|scheduler\w*|scaler|rng\w*|random\w*|callbacks?|loops|hyper\w*|args?|config|metrics?|history)"
    r"([_.-]|$)"
)
_MAX_DEPTH = 8
_MAX_KEYS = 8
_MAX_REASON = 300
# Several names may share numbers, such as tied weights and views of one buffer; more often than that is no model.
_MAX_SHARED = 4


class NoModelError(CheckpointError):
    """A file that can be read and holds no weights, such as the state of an optimizer."""

    __module__ = "lightning_symmetry.disk.checkpoints"


@dataclass
class Contents:
    """What a checkpoint holds.

    Attributes:
        tensors: by name. Those that have a place in a file have no numbers of their own.
        places: by name of a tensor, where its numbers lie.
        left_out: by name, why a tensor is not looked at.
        num_unread: how many numbers those have, as far as the file holds them.
        step: completed optimizer steps, as Lightning notes them; 0 if the file does not say.
        hyper_parameters: the arguments of the module, as Lightning notes them; None if the file has none.
        monitors: what the :class:`~lightning_symmetry.SymmetryMonitor` of the training has left in the file.
    """

    tensors: dict[str, Tensor]
    places: dict[str, Place] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    num_unread: int = 0
    step: int = 0
    hyper_parameters: dict[str, Any] | None = None
    monitors: list[dict[str, Any]] = field(default_factory=list)


def read(path: Path) -> Contents:
    """Read which tensors a checkpoint holds; their numbers stay in the file where its format allows that.

    Args:
        path: a file, or the index of several.

    Raises:
        CheckpointError: if the file is none of a checkpoint, is damaged, or holds more than tensors and plain data.
        OSError: if it cannot be opened.
    """
    contents, size = _read_shards(path) if is_index(path) else _read_file(path)
    claimed = sum({_key(place): place.claimed for place in contents.places.values()}.values())
    if claimed > _MAX_SHARED * size:
        raise CheckpointError(
            f"{str(path)!r} is refused: its tensors claim {claimed:,} bytes of a file of {size:,}, over and over again."
        )
    return contents


def _key(place: Place) -> object:
    return place.file.path, place.start, place.offset, place.dtype, place.shape, place.stride


def _read_file(path: Path) -> tuple[Contents, int]:
    """Read one file; returns its size, too."""
    if path.suffix == ".safetensors":
        file = StoredFile(path)
        return _of_places(*places_in_safetensors(file)), file.size
    if path.suffix in TORCH_SUFFIXES:
        file = StoredFile(path)
        return _read_torch(file), file.size
    raise CheckpointError(f"Expected {EXPECTED}, but got {str(path)!r}.")


def _of_places(places: Mapping[str, Place], left_out: Mapping[str, str]) -> Contents:
    faults = {name: fault for name, place in places.items() if (fault := place.fault())}
    good = {name: place for name, place in places.items() if name not in faults}
    num_unread = len(left_out) + sum(places[name].held for name in faults)
    tensors = {name: place.placeholder() for name, place in good.items()}
    return Contents(tensors, good, {**left_out, **faults}, num_unread)


def _read_shards(index: Path) -> tuple[Contents, int]:
    file = StoredFile(index)
    try:
        weight_map = json.loads(file.read(0, file.size))["weight_map"]
        shards = sorted({_beside(index, name) for name in weight_map.values()})
        if not shards:
            raise ValueError("it names no file")
    except CheckpointError:
        raise
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
    # A name that leads elsewhere may be meant to have another file read, and an index in an index would have no end.
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
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(_why_unreadable(file.path, error)) from error
    contents = _placed(_state_dict(file.path, content), archive)
    if isinstance(content, Mapping):
        keys = ("global_step", "hyper_parameters", "callbacks")
        step, arguments, callbacks = (
            archive.with_numbers(content.get(key)) if archive else content.get(key) for key in keys
        )
        contents.step = step if type(step) is int else 0
        contents.hyper_parameters = dict(arguments) if isinstance(arguments, Mapping) else None
        contents.monitors = _monitors(callbacks) if isinstance(callbacks, Mapping) else []
    return contents


def _load(file: StoredFile, begin: bytes) -> tuple[object, Archive | None]:
    """Return the object in a file of ``torch.save``; with its archive if the numbers were left there."""
    if begin == _ZIP:
        with suppress(NotImplementedError):  # PyTorch makes quantised and nested tensors with their numbers only
            archive = Archive(file)
            return archive.content, archive
    return torch.load(file.path, map_location="cpu", weights_only=True), None


def _placed(tensors: Mapping[str, Tensor], archive: Archive | None) -> Contents:
    """Sort tensors by where their numbers are: in the archive, in memory, or nowhere that this package reads."""
    places: dict[str, Place] = {}
    here: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for name, tensor in tensors.items():
        place = archive.place_of(tensor) if archive else None
        if place is not None:
            places[name] = place
        elif archive is not None or not is_plain(tensor) or tensor.is_meta:
            left_out[name] = _form_of(tensor)
        elif fault := _place_in_memory(tensor).fault():
            left_out[name] = fault
        else:
            here[name] = tensor.detach()
    contents = _of_places(places, left_out)
    contents.tensors |= here
    return contents


def _place_in_memory(tensor: Tensor) -> Place:
    storage = tensor.untyped_storage()
    where: Any = None  # it is only asked for what it claims
    shape, stride = tuple(tensor.shape), tensor.stride()
    return Place(where, 0, storage.nbytes(), tensor.dtype, shape, stride, int(tensor.storage_offset()))


def _form_of(tensor: Tensor) -> str:
    """Say in which form the numbers of a tensor are that cannot be read."""
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
        name = refused[1]
        return (
            f"{str(path)!r} is refused: to load it, {name} would have to be called. Expected nothing but tensors and "
            "plain data, such as a `state_dict()`. If you know the file, and the name is that of a harmless class, "
            "allow it with torch.serialization.add_safe_globals."
        )
    return (
        f"Expected {str(path)!r} to be a whole file of torch.save with a state dict, but reading it failed with "
        f"{_in_short(error)}"
    )


def _in_short(error: Exception) -> str:
    # PyTorch puts advice on `weights_only` around what has gone wrong.
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines() or [""]
    return f"{type(error).__name__}: {printable(lines[0][:_MAX_REASON])}"


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    nested = [content.get(place) for place in _PLACES] if isinstance(content, Mapping) else []
    for candidate in (*nested, content):
        if isinstance(candidate, Mapping):
            tensors = {str(name): tensor for name, tensor in candidate.items() if isinstance(tensor, Tensor)}
            if tensors:
                return tensors
    # Several models in one file, such as a generator and a discriminator, or one that lies deeper.
    nested_tensors = dict(_tensors_within(content)) if isinstance(content, Mapping) else {}
    if nested_tensors:
        return nested_tensors
    raise NoModelError(
        f"{str(path)!r} holds no tensors: expected a state dict, or one under {', '.join(map(repr, _PLACES))}, "
        f"but got {_in_words(content)}."
    )


def _tensors_within(content: Mapping[object, Any], start: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of dicts in one another by their path, without those of optimizers and their like."""
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
    keys = [brief(key) for _, key in zip(range(_MAX_KEYS), content, strict=False)]
    shown = ", ".join(keys) + (", ..." if len(content) > _MAX_KEYS else "")
    return f"a dict with the keys {shown}" if content else "an empty dict"


def _monitors(callbacks: Mapping[object, Any]) -> list[dict[str, Any]]:
    return [
        state
        for key, state in callbacks.items()
        if str(key).startswith("SymmetryMonitor") and isinstance(state, dict) and state
    ]
