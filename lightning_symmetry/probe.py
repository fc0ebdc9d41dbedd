"""Metrics of the activations inside a model, through forward hooks."""

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
from lightning_symmetry.units.naming import readable_modules
from lightning_symmetry.units.patterns import is_chosen

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
    """Feeds the outputs of modules to metrics, at every so-manieth forward pass in training mode.

    It changes nothing in the training, to the last bit: what it reads is copied, under ``no_grad``, and no random
    number is drawn. What cannot be measured is left out, and said once. On several ranks :meth:`compute` puts the
    samples of all of them together; all have to call it.

    A module that is used behind several layers, such as one ``ReLU`` for a whole block, is measured at each of these
    places: the first goes by the name of the module, the others by ``<module> after <layer>``. The layer also tells
    which dimension of an output holds the units: dimension 1 behind convolutions and batch norms, the last one behind
    ``Linear``, else the one that has the size of the layer's parameters. If none has, it is dimension 1 of an output of
    four dimensions or more, and one of three is left out. Samples that are not finite do not count. Each metric keeps
    ``(units + 1) ** 2`` numbers per place.

    No hooks are called inside of a compiled model, nor does the probe see copies of the model. Close it before
    ``torch.jit.script``, which takes no hooks.

    Args:
        model: the model, wrapped or not.
        include: patterns (:mod:`fnmatch`) of names of modules to look at; None: all modules of activation functions,
            such as ``torch.nn.ReLU``.
        exclude: patterns of names of modules to leave out.
        every_n_steps: a place is looked at in its first forward pass in training mode and then in every so-manieth.
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
        # Modules of TorchScript take no hooks.
        modules = [each for each in readable_modules(model) if not isinstance(each[1], torch.jit.ScriptModule)]
        chosen = {
            name: module
            for name, module in modules
            if is_chosen([name], include, exclude) and (include is not None or _is_activation(module))
        }
        if not chosen:
            raise ValueError(
                f"Expected argument `include` to match a module but got {brief(include)}, with `exclude` "
                f"{brief(exclude)}. None stands for modules of activation functions. The modules are: "
                f"{_listed([name for name, _ in modules])}."
            )
        self.metrics: dict[str, MetricCollection] = {}
        for name in chosen:
            self._metrics_at(name)
        self._guard = Guard(partial(warn, category=SymmetryWarning), who="ActivationProbe")
        self._num_passes: dict[str, int] = {}  # by place
        self._first: dict[str, str] = {}  # by module, the layer before it at its first place
        self._latest: tuple[str, nn.Module | None] = "", None  # the layer that has run last in this forward pass
        self._device = torch.device("cpu")
        self._unseen = set(chosen)  # modules of which no output was seen, and the user was not told so
        self._failed: set[str] = set()  # places whose metrics have failed
        self._handles: list[RemovableHandle] = []
        self._hook(model, modules, chosen)

    def _hook(self, model: nn.Module, modules: list[tuple[str, nn.Module]], chosen: dict[str, nn.Module]) -> None:
        measured = set(map(id, chosen.values()))
        untouched = {
            id(part)
            for _, module in modules
            if _is_compiled(module) or (_is_fused(module) and measured.isdisjoint(map(id, module.modules())))
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
                self._handles.append(module.register_forward_hook(_Hook(partial(self._take_in, name))))

    def _warn(self, text: str) -> None:
        warn(f"ActivationProbe {text}", SymmetryWarning)

    def _metrics_at(self, place: str) -> MetricCollection:
        if place not in self.metrics:
            self.metrics[place] = MetricCollection(dict(self._make_metrics()), compute_groups=False)
            for metric in self.metrics[place].values():
                metric.compute_with_cache = False  # a rank without new samples would keep the others waiting
        return self.metrics[place]

    def _begin(self, module: nn.Module, output: Any) -> None:
        """Note that a forward pass of the model begins."""
        self._latest = "", None

    def _note(self, name: str, module: nn.Module, output: Any) -> None:
        """Note that a layer has run; or that it begins, if it has modules inside, which may be measured."""
        self._latest = name, module

    def _take_in(self, name: str, module: nn.Module, output: Any) -> None:
        """Measure an output of a chosen module, if it is its turn."""
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
        """The metrics of all places, such as ``symmetry/dead_activations/<name>``; of all samples since the reset."""
        if self._unseen:
            self._warn(
                f"has measured nothing at {_listed(sorted(self._unseen))}, where no tensor of two dimensions or more "
                "came out in training mode. Inside of a compiled model no hooks are called: probe one that is not."
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
        """The places that any rank has seen, in one order on all: every rank has to take part in each metric."""
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
        """Take the hooks off the model; the metrics stay."""
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


class _Hook:
    """A hook of one module. Copies and pickles of the module get one that does nothing."""

    def __init__(self, step: Callable[[nn.Module, Any], None] | None = None) -> None:
        self._step = step

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        # What is compiled would hold all that follows.
        if not torch.compiler.is_compiling() and self._step is not None:
            self._step(module, output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()

    @property
    def __name__(self) -> str:  # is what TorchScript asks for first
        raise AttributeError("torch.jit.script takes no hooks: close the ActivationProbe before")


def _is_recorded(output: Tensor) -> bool:
    """Return whether torch.jit.trace or a CUDA graph records a forward pass, with all that is done meanwhile."""
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return is_traced or (output.is_cuda and torch.cuda.is_current_stream_capturing())


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function of PyTorch's, or of a subclass."""
    is_torch = any(getattr(base, "__module__", "") == _ACTIVATIONS for base in type(module).__mro__)
    return is_torch and not isinstance(module, _NO_UNITS)


def _is_compiled(module: nn.Module) -> bool:
    """Return whether torch.compile has got a module: hooks inside are not called, and may change what is compiled."""
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _is_fused(module: nn.Module) -> bool:
    """Return whether PyTorch computes a module at once in eval mode, as long as there is no hook inside."""
    return isinstance(module, nn.TransformerEncoderLayer)


def _has_weights(module: nn.Module) -> bool:
    """Return whether a module computes units with weights of its own."""
    has_own = any(parameter is not None for parameter in module._parameters.values())
    return (has_own or isinstance(module, _KNOWN)) and not _is_activation(module)


def _units_dim(shape: Sequence[int], layer: nn.Module | None) -> int:
    """Return which dimension of an output holds the units.

    Args:
        shape: of the output, whose first dimension is the batch.
        layer: the layer before it.

    Raises:
        ValueError: if that is not certain.
    """
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
    # An output that was split or flattened since is still certain, unless it may have no batch.
    if not fitting and (len(shape) != 3 if usual is None else not is_first or shape[0] not in sizes):
        return usual or 1
    raise ValueError(f"it is not certain which dimension of an output of shape {tuple(shape)} holds the units")


def _listed(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
