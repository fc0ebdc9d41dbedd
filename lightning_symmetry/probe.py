"""Metrics of the activations inside a model, through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.metric import Metric

from lightning_symmetry.arguments import check_count, check_module, check_patterns
from lightning_symmetry.brief import brief
from lightning_symmetry.metrics import DeadActivations, DuplicateActivations, EffectiveRank
from lightning_symmetry.units.naming import readable_modules
from lightning_symmetry.units.patterns import is_chosen

_ACTIVATIONS = nn.ReLU.__module__
_NO_UNITS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)
_MAX_NAMES = 20  # in messages


def _default_metrics() -> dict[str, Metric]:
    return {
        "dead_activations": DeadActivations(),
        "duplicate_activations": DuplicateActivations(),
        "effective_rank": EffectiveRank(),
    }


class ActivationProbe:
    """Feeds the outputs of modules to metrics, at every so-manieth forward pass in training mode.

    It changes nothing in the training, to the last bit: what it reads is detached, under ``no_grad``, and no random
    number is drawn. On several ranks :meth:`compute` puts the samples of all of them together; all have to call it.

    The units of an output ``(N, units)`` or ``(N, ..., units)`` are its last dimension, those of an output of four
    dimensions or more, as of a convolution of images, its second. Each metric keeps ``(units + 1) ** 2`` numbers per
    module.

    Args:
        model: the model, wrapped or not.
        include: patterns (:mod:`fnmatch`) of names of modules to look at; None: all modules of activation functions,
            such as ``torch.nn.ReLU``.
        exclude: patterns of names of modules to leave out.
        every_n_steps: a module is looked at in its first forward pass in training mode and then in every so-manieth.
        make_metrics: makes the metrics of one module, by name; None: the shares of dead and of duplicate units, and the
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
        chosen = {
            name: module
            for name, module in readable_modules(model)
            if is_chosen([name], include, exclude) and (include is not None or _is_activation(module))
        }
        if not chosen:
            names = [name for name, _ in readable_modules(model)]
            raise ValueError(
                f"Expected argument `include` to match a module but got {brief(include)}, with `exclude` "
                f"{brief(exclude)}. None stands for modules of activation functions. The modules are: "
                f"{', '.join(names[:_MAX_NAMES])} ({len(names)} in all)."
            )
        make = make_metrics or _default_metrics
        self.metrics = {name: MetricCollection(dict(make()), compute_groups=False) for name in chosen}
        self._num_passes = dict.fromkeys(chosen, 0)
        self._handles = [module.register_forward_hook(partial(self._take_in, name)) for name, module in chosen.items()]

    def _take_in(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not module.training:
            return
        number = self._num_passes[name]
        self._num_passes[name] += 1
        if number % self._every_n_steps or not isinstance(output, Tensor) or output.ndim < 2:
            return
        with torch.no_grad():
            units = output.detach().movedim(1, -1) if output.ndim > 3 else output.detach()
            samples = units.reshape(-1, units.shape[-1])
            if len(samples):
                self.metrics[name].to(samples.device).update(samples)

    def compute(self) -> dict[str, Tensor]:
        """The metrics of all modules, such as ``symmetry/dead_activations/<name>``; of all samples since the reset."""
        return {
            f"symmetry/{metric}/{name}": value
            for name, collection in self.metrics.items()
            for metric, value in collection.compute().items()
        }

    def reset(self) -> None:
        """Forget all samples."""
        for collection in self.metrics.values():
            collection.reset()

    def close(self) -> None:
        """Take the hooks off the model; the metrics stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> ActivationProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function of PyTorch's, or of a subclass."""
    is_torch = any(getattr(base, "__module__", "") == _ACTIVATIONS for base in type(module).__mro__)
    return is_torch and not isinstance(module, _NO_UNITS)
