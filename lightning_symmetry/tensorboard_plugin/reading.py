"""Histories and matrices, read through TensorBoard's data provider."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import Any, TypeVar

from tensorboard.context import RequestContext
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
_ALL = 10_000_000  # the provider must be given a number of events, and a summary builds on all before it


class ArgumentError(ValueError):
    """A request names a run, layer or step that does not exist; the message is written for the user."""


@dataclass(frozen=True)
class Matrix:
    """The similarities of one layer at one step.

    Attributes:
        units: indices of the units, in the order of the rows.
        cells: one byte per cell, row by row.
        key: a short text that differs for matrices with other units or cells, so that a reader can keep what it has.
    """

    units: list[int]
    cells: bytes
    key: str


class Reader:
    """Reads the Symmetry tab's events of one experiment.

    Args:
        provider: gives access to the events, whichever way TensorBoard loads them.
        context: the context of the request.
        experiment: identity of the experiment; empty for a log directory.
        cache: keeps what readers have computed; share one among all readers.
    """

    def __init__(self, provider: DataProvider, context: RequestContext, experiment: str, cache: Cache) -> None:
        self._provider = provider
        self._context = context
        self._experiment = experiment
        self._cache = cache

    def versions(self) -> dict[str, str]:
        """For each run, in natural order of the names, a text that changes whenever its data changes."""
        series = self._list(RunTagFilter(tags=[SUMMARY_TAG]))
        runs = sorted(series, key=natural_order)
        return {run: series[run][SUMMARY_TAG] for run in runs}

    def history(self, run: str) -> RunHistory:
        """The history of a run.

        Raises:
            ArgumentError: if there is no such run.
        """
        version = self._list(RunTagFilter(runs=[run], tags=[SUMMARY_TAG])).get(run, {}).get(SUMMARY_TAG)
        if version is None:
            raise ArgumentError(f"Expected argument `run` to be a run with data of the Symmetry tab but got {run!r}.")
        return self._cache.get((self._experiment, run), version, lambda: fold(_payloads(self._read(run, SUMMARY_TAG))))

    def layer(self, run: str, layer: str) -> dict[str, Any]:
        """A layer over time, and step, units and key of each of its matrices; ready for JSON.

        Raises:
            ArgumentError: if there is no such run, or it has no such layer.
        """
        matrices = sorted(self.matrices(run, layer).items())
        shown = [{"step": step, "units": matrix.units, "key": matrix.key} for step, matrix in matrices]
        return {**self.history(run).layer_to_json(layer), "matrices": shown}

    def matrices(self, run: str, layer: str) -> dict[int, Matrix]:
        """The matrices of a layer by step, without those that cannot be read.

        Raises:
            ArgumentError: if there is no such run, or it has no such layer.
        """
        if layer not in self.history(run).layers:
            raise ArgumentError(f"Expected argument `layer` to be a layer of run {run!r} but got {layer!r}.")
        tag = MATRIX_TAG + layer
        version = self._list(RunTagFilter(runs=[run], tags=[tag])).get(run, {}).get(tag)
        if version is None:
            return {}
        return self._cache.get(
            (self._experiment, run, layer), version, lambda: _matrices(_payloads(self._read(run, tag)))
        )

    def _list(self, wanted: RunTagFilter) -> dict[str, dict[str, str]]:
        series = self._provider.list_tensors(
            self._context, experiment_id=self._experiment, plugin_name=PLUGIN_NAME, run_tag_filter=wanted
        )
        return {
            run: {tag: f"{values.max_step}@{values.max_wall_time}" for tag, values in tags.items()}
            for run, tags in series.items()
        }

    def _read(self, run: str, tag: str) -> Iterable[TensorDatum]:
        data: Mapping[str, Mapping[str, list[TensorDatum]]] = self._provider.read_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=PLUGIN_NAME,
            downsample=_ALL,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
        )
        return data.get(run, {}).get(tag, [])


class Cache:
    """Keeps the results that were used last, each for one version of the data it was computed from.

    Args:
        size: number of results to keep.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._lock = Lock()
        self._kept: dict[Hashable, tuple[str, Any]] = {}

    def get(self, key: Hashable, version: str, compute: Callable[[], T]) -> T:
        """The result kept for this key and version; if there is none, calls ``compute`` and keeps its result."""
        with self._lock:
            kept = self._kept.get(key)
        value: T = kept[1] if kept and kept[0] == version else compute()
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = (version, value)
            while len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]
        return value


def _payloads(data: Iterable[TensorDatum]) -> Iterable[tuple[int, bytes]]:
    for datum in data:
        content = datum.numpy.reshape(-1)[:1].tolist()
        yield datum.step, content[0] if content and isinstance(content[0], bytes) else b""


def _matrices(payloads: Iterable[tuple[int, bytes]]) -> dict[int, Matrix]:
    matrices: dict[int, Matrix] = {}
    for step, data in payloads:
        # A step that is not the latest belongs to a training that was started again from an earlier checkpoint.
        for later in [other for other in matrices if other > step]:
            del matrices[later]
        try:
            units, cells = unpack_matrix(data)
        except PayloadError:
            continue
        matrices[step] = Matrix(units, cells, blake2b(data, digest_size=8).hexdigest())
    return matrices
