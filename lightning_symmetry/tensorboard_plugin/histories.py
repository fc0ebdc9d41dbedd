"""Reads histories and matrices through TensorBoard's data provider."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from time import monotonic
from typing import Any, TypeVar

import numpy.typing as npt
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.context import RequestContext
from tensorboard.data.proto.data_provider_pb2 import ReadTensorsRequest
from tensorboard.data.provider import DataProvider, RunTagFilter, TensorDatum

from lightning_symmetry.tensorboard_plugin.events import (
    MATRIX_TAG,
    PLUGIN_NAME,
    SUMMARY_TAG,
    PayloadError,
    natural_order,
    unpack_matrix,
)
from lightning_symmetry.tensorboard_plugin.folding import RunHistory, fold

T = TypeVar("T")
Events = list[tuple[int, bytes]]
"""Step and bytes of each event of a tag; empty bytes if the event does not hold bytes."""
Summary = tuple[str, dict[str, Any] | None]
"""The version of a run, and its row in the table of runs, which is None if no check of the run can be read."""
_UNREAD: Summary = ("", None)  # no run with data has this version
_MANY = 16  # runs per request
_ALL = 10_000_000  # events to ask for: all of them, because each summary builds on those before it


class ArgumentError(ValueError):
    """A request names a run, layer or step that does not exist; the message is written for the user."""


@dataclass(frozen=True)
class Matrix:
    """The similarities of one layer at one step."""

    units: list[int]  # indices of the units, in the order of the rows
    cells: bytes  # one byte per cell, row by row
    key: str  # a hash of units and cells, so that the page fetches equal matrices once


class Reader:
    """Reads the Symmetry tab's events of one TensorBoard experiment. The id of a log directory is empty.

    All readers share a cache. Methods raise ArgumentError for a run or layer that does not exist.
    """

    def __init__(self, provider: DataProvider, context: RequestContext, experiment: str, cache: Cache) -> None:
        self._provider = provider
        self._context = context
        self.experiment = experiment
        self._cache = cache

    def versions(self) -> dict[str, str]:
        """Map each run, in natural order of the names, to a text that changes whenever its data changes."""
        series = self._list(RunTagFilter(tags=[SUMMARY_TAG]))
        runs = sorted(series, key=natural_order)
        return {run: series[run][SUMMARY_TAG] for run in runs}

    def history(self, run: str) -> RunHistory:
        """Return the history of a run."""
        version = self._list(RunTagFilter(runs=[run], tags=[SUMMARY_TAG])).get(run, {}).get(SUMMARY_TAG)
        if version is None:
            raise ArgumentError(f"Expected argument `run` to be a run with data of the Symmetry tab but got {run!r}.")
        return self._cache.get((self.experiment, run), version, lambda: fold(self._read([run], SUMMARY_TAG)[run]))

    def histories(self, runs: Sequence[str]) -> Iterator[tuple[str, RunHistory]]:
        """Yield names and histories of some runs, in the given order.

        A request to TensorBoard's fast server costs more than its answer, so each request asks for several runs.
        """
        for start in range(0, len(runs), _MANY):
            batch = runs[start : start + _MANY]
            events = self._read(batch, SUMMARY_TAG)
            for run in batch:
                yield run, fold(events[run])

    def layer(self, run: str, layer: str) -> dict[str, Any]:
        """Return a layer over time, and step, units and key of each of its matrices; ready for JSON."""
        matrices = sorted(self.matrices(run, layer).items())
        shown = [{"step": step, "units": matrix.units, "key": matrix.key} for step, matrix in matrices]
        return {**self.history(run).layer_to_json(layer), "matrices": shown}

    def matrices(self, run: str, layer: str) -> dict[int, Matrix]:
        """Return the readable matrices of a layer by step."""
        if layer not in self.history(run).layers:
            raise ArgumentError(f"Expected argument `layer` to be a layer of run {run!r} but got {layer!r}.")
        tag = MATRIX_TAG + layer
        version = self._list(RunTagFilter(runs=[run], tags=[tag])).get(run, {}).get(tag)
        if version is None:
            return {}
        return self._cache.get((self.experiment, run, layer), version, lambda: _matrices(self._read([run], tag)[run]))

    def _list(self, wanted: RunTagFilter) -> dict[str, dict[str, str]]:
        series = self._provider.list_tensors(
            self._context, experiment_id=self.experiment, plugin_name=PLUGIN_NAME, run_tag_filter=wanted
        )
        return {
            run: {tag: f"{values.max_step}@{values.max_wall_time}" for tag, values in tags.items()}
            for run, tags in series.items()
        }

    def _read(self, runs: Sequence[str], tag: str) -> dict[str, Events]:
        """Return the events of a tag for each of some runs."""
        # `read_tensors` makes arrays: a tensor of a wrong shape would lose all events, a huge one fill the memory.
        if multiplexer := getattr(self._provider, "_multiplexer", None):
            return {
                run: [(event.step, _content(event.tensor_proto)) for event in multiplexer.Tensors(run, tag)]
                for run in runs
            }
        if stub := getattr(self._provider, "_stub", None):
            return _request(stub, self.experiment, runs, tag)
        data: Mapping[str, Mapping[str, list[TensorDatum]]] = self._provider.read_tensors(
            self._context,
            experiment_id=self.experiment,
            plugin_name=PLUGIN_NAME,
            downsample=_ALL,
            run_tag_filter=RunTagFilter(runs=runs, tags=[tag]),
        )
        return {run: [(datum.step, _first(datum.numpy)) for datum in data.get(run, {}).get(tag, [])] for run in runs}


class Summaries:
    """Caches the summary of each run, that is its row in the table of runs."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Summary]] = {}  # by experiment and run

    def of(self, reader: Reader, patience: float) -> list[dict[str, Any]]:
        """Return name, version and summary of each run, in natural order of the names; ready for JSON.

        After ``patience`` seconds no further run is read. Runs whose summaries are outdated are marked as pending.
        """
        deadline = monotonic() + patience
        versions = reader.versions()
        kept = self._kept.setdefault(reader.experiment, {})
        for run in kept.keys() - versions.keys():
            kept.pop(run, None)
        outdated = [run for run, version in versions.items() if kept.get(run, _UNREAD)[0] != version]
        for run, history in reader.histories(outdated):
            kept[run] = versions[run], history.summary() if history.steps else None
            if monotonic() > deadline:
                break
        return [
            {
                "name": run,
                "version": version,
                "summary": kept.get(run, _UNREAD)[1],
                "pending": kept.get(run, _UNREAD)[0] != version,
            }
            for run, version in versions.items()
        ]


class Cache:
    """Keeps the ``size`` most recently used results, each for one version of its data."""

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._lock = Lock()
        self._kept: dict[Hashable, tuple[str, Any]] = {}

    def get(self, key: Hashable, version: str, compute: Callable[[], T]) -> T:
        """Return the result for this key and version; call ``compute`` if it is not cached."""
        with self._lock:
            kept = self._kept.get(key)
        value: T = kept[1] if kept and kept[0] == version else compute()
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = (version, value)
            while len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]
        return value


def _request(stub: Any, experiment: str, runs: Sequence[str], tag: str) -> dict[str, Events]:
    """Read events from TensorBoard's fast server."""
    request = ReadTensorsRequest(experiment_id=experiment)
    request.plugin_filter.plugin_name = PLUGIN_NAME
    request.run_tag_filter.runs.names.extend(runs)
    request.run_tag_filter.tags.names.append(tag)
    request.downsample.num_points = _ALL
    found: dict[str, Events] = {run: [] for run in runs}
    for answer in stub.ReadTensors(request).runs:
        for series in answer.tags:
            values = map(_content, series.data.value)
            found[answer.run_name] += zip(series.data.step, values, strict=True)
    return found


def _content(tensor: TensorProto) -> bytes:
    """Return the first string of a tensor of any shape; empty if the tensor holds no strings."""
    return bytes(tensor.string_val[0]) if tensor.dtype == DT_STRING and tensor.string_val else b""


def _first(values: npt.NDArray[Any]) -> bytes:
    content = values.reshape(-1)[:1].tolist()
    return content[0] if content and isinstance(content[0], bytes) else b""


def _matrices(payloads: Iterable[tuple[int, bytes]]) -> dict[int, Matrix]:
    matrices: dict[int, Matrix] = {}
    for step, data in payloads:
        # The training has continued from an earlier checkpoint: matrices of later steps are outdated.
        for later in [other for other in matrices if other > step]:
            del matrices[later]
        try:
            units, cells = unpack_matrix(data)
        except PayloadError:
            continue
        matrices[step] = Matrix(units, cells, blake2b(data, digest_size=8).hexdigest())
    return matrices
