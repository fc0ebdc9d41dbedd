"""Metrics of the activations inside a model, measured by forward hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import MetricCollection
from torchmetrics.metric import Metric

from lightning_symmetry.arguments import check_count, check_module, check_patterns
from lightning_symmetry.brief import brief
from lightning_symmetry.engine.guard import Guard
from lightning_symmetry.engine.messages import SymmetryWarning, warn
from lightning_symmetry.functional import finite_samples
from lightning_symmetry.matrices.numerics import exact_arithmetic
from lightning_symmetry.metrics import DeadActivations, DuplicateActivations, EffectiveRank
from lightning_symmetry.ranks.sketches import has_group
from lightning_symmetry.ranks.team import describe
from lightning_symmetry.units.hooks import ModuleHook
from lightning_symmetry.units.naming import is_chosen, readable_modules
from lightning_symmetry.units.usage import is_compiled

_ACTIVATIONS = nn.ReLU.__module__
_NO_UNITS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)
_MAX_NAMES = 20  # in messages

# Layers whose units are dimension 1 of their outputs, and layers whose units are the last dimension.
_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.RNNBase)
_KNOWN = (*_CHANNELS_FIRST, *_CHANNELS_LAST)
_NUM_UNITS = ("out_channels", "num_features", "num_channels", "out_features")


def _default_metrics() -> dict[str, Metric]:
    return {
        "dead_activations": DeadActivations(),
        "duplicate_activations": DuplicateActivations(),
        "effective_rank": EffectiveRank(),
    }


class ActivationProbe:
    """Feeds the outputs of modules to metrics, in every ``every_n_steps``-th forward pass in training mode.

    The training is unaffected, to the last bit: the probe reads copies, under ``no_grad``, and draws no random numbers.
    Modules that cannot be measured are left out, with one warning. With several ranks, :meth:`compute` combines the
    samples of all; all must call it.

    A module that is used after several layers, such as one ``ReLU`` for a whole block, is measured at each of these
    places: the first has the name of the module, the others are ``<module> after <layer>``. The layer also determines
    the dimension of the units in an output: dimension 1 after convolutions and batch norms, the last one after
    ``Linear``, else the one with the size of the layer's parameters. If there is none, it is dimension 1 of outputs
    with four dimensions or more; outputs with three are left out. Samples that are not finite do not count. Each metric
    keeps ``(units + 1) ** 2`` numbers per place.

    Compiled models call no hooks, and copies of the model have none. Close the probe before ``torch.jit.script``, which
    supports no hooks.

    Args:
        model: the model, wrapped or not.
        include: patterns (:mod:`fnmatch`) of names of modules to measure; None: all modules of activation functions,
            such as ``torch.nn.ReLU``.
        exclude: patterns of names of modules to leave out.
        every_n_steps: at each place, the first of every so many forward passes in training mode is measured.
        make_metrics: makes the metrics of one place, by name; None: the shares of dead and of duplicate units, and the
            effective rank.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if no module is chosen.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with ActivationProbe(model, every_n_steps=1) as probe:
        ...     for _ in range(3):
        ...         _ = model(torch.randn(16, 4))
        >>> sorted(probe.compute())
        ['symmetry/dead_activations/1', 'symmetry/duplicate_activations/1', 'symmetry/effective_rank/1']
    """

    def __init__(
        self,
        model: nn.Module,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        every_n_steps: int = 50,
        make_metrics: Callable[[], dict[str, Metric]] | None = None,
    ) -> None:
        check_module(model)
        check_patterns(include=include, exclude=exclude)
        check_count("every_n_steps", every_n_steps)
        self._every_n_steps = every_n_steps
        self._make_metrics = make_metrics or _default_metrics
        # TorchScript modules support no hooks.
        modules = [each for each in readable_modules(model) if not isinstance(each[1], torch.jit.ScriptModule)]
        chosen = {
            name: module
            for name, module in modules
            if is_chosen([name], include, exclude) and (include is not None or _is_activation(module))
        }
        if not chosen:
            raise ValueError(
                f"Expected argument `include` to match a module but got {brief(include)}, with `exclude` "
                f"{brief(exclude)}. None selects the modules of activation functions. The modules are: "
                f"{_listed([name for name, _ in modules])}."
            )
        self.metrics: dict[str, MetricCollection] = {}
        for name in chosen:
            self._metrics_at(name)
        self._guard = Guard(partial(warn, category=SymmetryWarning), who="ActivationProbe")
        self._num_passes: dict[str, int] = {}  # by place
        self._first: dict[str, str] = {}  # by name of a module, the name of the layer before it at its first place
        self._latest: tuple[str, nn.Module | None] = "", None  # the layer that ran last in this forward pass
        self._device = torch.device("cpu")
        self._unseen = set(chosen)  # modules that have not been measured; cleared by the warning about them
        self._failed: set[str] = set()  # places whose metrics have failed, each with a warning
        self._handles: list[RemovableHandle] = []
        self._hook(model, modules, chosen)

    def _hook(self, model: nn.Module, modules: list[tuple[str, nn.Module]], chosen: dict[str, nn.Module]) -> None:
        measured = set(map(id, chosen.values()))
        # Hooks inside a compiled module are not called, and may change the compiled code. Hooks inside an encoder layer
        # prevent PyTorch from fusing it in eval mode.
        untouched = {
            id(part)
            for _, module in modules
            if is_compiled(module)
            or (isinstance(module, nn.TransformerEncoderLayer) and measured.isdisjoint(map(id, module.modules())))
            for part in module.modules()
        }
        for name, module in modules:
            if id(module) in untouched:
                continue
            if module is model:
                self._handles.append(module.register_forward_pre_hook(_Hook(self._begin)))
            if _has_weights(module):
                is_whole = isinstance(module, _KNOWN) or not module._modules
                register = module.register_forward_hook if is_whole else module.register_forward_pre_hook
                self._handles.append(register(_Hook(partial(self._note, name))))
            if chosen.get(name) is module:
                self._handles.append(module.register_forward_hook(_Hook(partial(self._measure_if_due, name))))

    def _warn(self, text: str) -> None:
        warn(f"ActivationProbe {text}", SymmetryWarning)

    def _metrics_at(self, place: str) -> MetricCollection:
        if place not in self.metrics:
            self.metrics[place] = MetricCollection(dict(self._make_metrics()), compute_groups=False)
            for metric in self.metrics[place].values():
                metric.compute_with_cache = False  # a rank with a cached value would not synchronize
        return self.metrics[place]

    def _begin(self, *args: Any) -> None:
        """Record the start of a forward pass of the model."""
        self._latest = "", None

    def _note(self, name: str, module: nn.Module, *args: Any) -> None:
        """Record that a layer has run, or, if it contains modules that may be measured, that it begins."""
        self._latest = name, module

    def _measure_if_due(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Measure an output of a chosen module, if its place is due."""
        if not module.training or not isinstance(output, Tensor) or output.ndim < 2 or output.is_meta:
            return
        source, layer = self._latest
        is_first = self._first.setdefault(name, source) == source
        place = name if is_first else f"{name} after {source or 'no layer'}"
        number = self._num_passes.get(place, 0)
        self._num_passes[place] = number + 1
        if number % self._every_n_steps == 0 and not _is_recorded(output):
            self._unseen.discard(name)
            self._guard.run(f"measurement of {place}", self._measure, place, layer, output)

    def _measure(self, place: str, layer: nn.Module | None, output: Tensor) -> None:
        metrics = self._metrics_at(place)
        try:
            with exact_arithmetic(output.device):
                units = output.detach().movedim(_units_dim(output.shape, layer), -1)
                samples = finite_samples(units.flatten(0, -2))
                if len(samples):
                    self._device = samples.device
                    metrics.to(self._device).update(samples)
        except Exception:
            metrics.reset()
            raise

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all places since the reset, by tags such as ``symmetry/dead_activations/<name>``."""
        if self._unseen:
            self._warn(
                f"has measured nothing at {_listed(sorted(self._unseen))}, where no tensor of two dimensions or more "
                "came out in training mode. Compiled models call no hooks: probe the model before torch.compile."
            )
            self._unseen.clear()
        values: dict[str, Tensor] = {}
        for place in self._places():
            try:
                found = self._compute_at(place)
            except Exception as error:
                if place not in self._failed:
                    self._warn(f"leaves out {place}, whose metrics failed with {describe(error)}")
                self._failed.add(place)
            else:
                values |= {f"symmetry/{metric}/{place}": value for metric, value in found.items()}
        return values

    def _compute_at(self, place: str) -> dict[str, Tensor]:
        metrics = self._metrics_at(place).to(self._device)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* was called before the ``update`` method")
                found: dict[str, Tensor] = metrics.compute()
        except Exception:
            metrics.reset()
            raise
        return found

    def _places(self) -> Collection[str]:
        """Return the places that any rank has seen, in the same order on all, since each metric synchronizes."""
        metric = next((metric for metrics in self.metrics.values() for metric in metrics.values()), None)
        if metric is None or not metric.sync_on_compute or not has_group():
            return self.metrics
        of_ranks: list[Any] = [None] * dist.get_world_size(metric.process_group)
        dist.all_gather_object(of_ranks, list(self.metrics), group=metric.process_group)
        return dict.fromkeys(place for places in of_ranks for place in places)

    def reset(self) -> None:
        """Forget all samples."""
        for collection in self.metrics.values():
            collection.reset()

    def close(self) -> None:
        """Remove the hooks from the model; keep the metrics."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._latest = "", None

    def __enter__(self) -> ActivationProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Hook(ModuleHook):
    """Does nothing while a module is compiled: the compiled code would include the measurement."""

    def __call__(self, *args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._observe(*args)

    @property
    def __name__(self) -> str:  # the first attribute that TorchScript reads
        raise AttributeError("torch.jit.script supports no hooks: close the ActivationProbe before")


def _is_recorded(output: Tensor) -> bool:
    """Return whether torch.jit.trace or a CUDA graph is recording the forward pass."""
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return is_traced or (output.is_cuda and torch.cuda.is_current_stream_capturing())


def _is_activation(module: nn.Module) -> bool:
    """Return whether a module is an activation function of PyTorch, or a subclass."""
    is_torch = any(getattr(base, "__module__", "") == _ACTIVATIONS for base in type(module).__mro__)
    return is_torch and not isinstance(module, _NO_UNITS)


def _has_weights(module: nn.Module) -> bool:
    """Return whether a module computes units, with weights of its own or as a known layer."""
    has_own = any(parameter is not None for parameter in module._parameters.values())
    return (has_own or isinstance(module, _KNOWN)) and not _is_activation(module)


def _units_dim(shape: Sequence[int], layer: nn.Module | None) -> int:
    """Return the dimension of the units in an output ``(batch, ...)`` after a layer; raise if it is uncertain."""
    is_first = isinstance(layer, _CHANNELS_FIRST)
    usual = 1 if is_first else len(shape) - 1 if isinstance(layer, _CHANNELS_LAST) else None
    parameters = [each for each in (layer._parameters.values() if layer is not None else ()) if each is not None]
    sizes = (
        {getattr(layer, name) for name in _NUM_UNITS if hasattr(layer, name)}
        or {len(parameter) for parameter in parameters if parameter.ndim == 1}
        or {size for parameter in parameters for size in parameter.shape}
    )
    fitting = [dim for dim in range(1, len(shape)) if shape[dim] in sizes]
    if usual in fitting:
        return usual
    if usual is None and len(fitting) == 1:
        return fitting[0]
    # After a split or flatten no size fits: then the usual dimension counts, unless the output may lack the batch.
    if not fitting and (len(shape) != 3 if usual is None else not is_first or shape[0] not in sizes):
        return usual or 1
    raise ValueError(f"it is not certain which dimension of an output of shape {tuple(shape)} holds the units")


def _listed(names: Sequence[str]) -> str:
    """Return names as text: the first ones, and the number of all if there are more."""
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
