"""Trials of a merge on a copy of the model with other numbers, in float64 and in both modes.

The numbers of a model can hide a mistake. Behind a head of zeros every merge looks right, on small inputs a clamp looks
like the identity, and in half precision an error of a percent looks like rounding. So a merge is tried on a copy in
float64 with noise on all parameters, in which the units in question are exactly equal. There, a correct merge has no
error but rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_symmetry.merging import verification
from lightning_symmetry.merging.edits import Edit, Equal
from lightning_symmetry.merging.verification import Inputs, NotMergedError, describe

_SEED = 1
_NOISE = 0.1  # relative to the root mean square of a parameter
_MAX_ERROR = 1e-9  # far above rounding errors in float64
_MAX_ERROR_LARGE = 1e-6  # for large numbers, because their sines, for example, lose digits


class Run(NamedTuple):
    """One run of the model."""

    inputs: Inputs  # the model's arguments
    is_training: bool  # the model's mode
    factor: float  # factor for all parameters
    max_error: float  # the relative error that rounding can cause
    where: str  # the run in words, to follow "removing them changes the outputs"


@dataclass(frozen=True)
class Trial:
    """A copy of a model on which merges are tried, and what its runs have shown."""

    model: nn.Module  # the copy
    runs: tuple[Run, ...]  # the runs in which the original model does not fail
    unused: dict[str, torch.Size]  # shapes of the parameters that no run used, by name
    reads_numbers: bool  # whether the model reads numbers out of tensors, and so may branch on them
    why_not_trained: str  # why the model was not run in training mode; empty if it was
    why_not_exact: str  # why no merge can be tried; empty if merges can

    @staticmethod
    def of(model: nn.Module, inputs: Inputs) -> Trial:
        """Make a trial on a copy of the model."""
        twin = verification.exact_copy(model, inputs)
        exact = verification.is_exact(twin)
        if not exact and any(each.dtype in (torch.float16, torch.bfloat16) for each in twin.parameters()):
            why_not = "the model fails in float64, and in half precision a wrong merge looks like rounding"
            return Trial(twin, (), {}, False, "", why_not)
        _add_noise(twin)
        watch = _Watch()
        runs: list[Run] = []
        why_not_trained = ""
        probe = copy.deepcopy(twin)
        for run in _runs(inputs.exact() if exact else inputs, exact):
            if why_not_trained and run.is_training:
                continue
            is_first = run.is_training and not any(each.is_training for each in runs)
            other = copy.deepcopy(probe) if is_first else None
            try:
                outputs = _outputs(probe, run, watch)
                if other is not None and verification.relative_error(outputs, _outputs(other, run)) != 0:
                    raise RuntimeError("it returns something else at every call")
            except Exception as error:  # the model may reject inputs of another size
                why_not_trained = describe(error) if is_first else ""
                continue
            runs.append(run)
        named = probe.named_parameters()
        unused = {name: each.shape for name, each in named if each.numel() and _storage(each) not in watch.used}
        return Trial(twin, tuple(runs), unused, watch.reads_numbers, why_not_trained, "")

    def check_paths(self, num_units: int, *, knows_all_readers: bool) -> None:
        """Check that no path that the runs did not take can read the units of a layer.

        ``knows_all_readers`` says that a symbolic trace of both modes has found all layers that read the units.
        """
        if self.why_not_exact:
            raise NotMergedError(self.why_not_exact)
        if knows_all_readers:
            return
        if self.why_not_trained:
            raise NotMergedError(
                f"in training mode the model fails on the example inputs ({self.why_not_trained}), so it is unknown "
                "what reads them there"
            )
        for name, shape in self.unused.items():
            if max(shape, default=0) >= num_units:
                raise NotMergedError(f"`{name}` was used in no run of the model, and what uses it may read them")
        if self.reads_numbers:
            raise NotMergedError(
                "the model reads numbers out of tensors, as in `if x.max() > 1`, and may branch on them to a path that "
                "reads the units"
            )

    def after(self, merged: nn.Module, equal: Iterable[Equal], edits: Sequence[Edit]) -> Trial:
        """Check that a merge changes no run's outputs; return the trial after it. Of ``merged``, only shapes count."""
        before = copy.deepcopy(self.model)
        tensors = dict(_tensors(before))
        with torch.no_grad():
            for each in equal:
                each.apply(tensors[each.name])
            after = copy.deepcopy(merged)
            if verification.is_exact(before):
                verification.to_float64(after)
            for name, tensor in _tensors(after):
                source = tensors[name].detach()
                for edit in edits:
                    source = edit.apply(source) if edit.name == name else source
                tensor.copy_(source)
        for module, theirs in zip(after.modules(), before.modules(), strict=True):
            module.training = theirs.training
        for run in self.runs:
            expected = _outputs(before, run)
            try:
                actual = _outputs(after, run)
            except Exception as failure:  # a model may depend on its widths anywhere
                where = " in training mode" if run.is_training else ""
                raise NotMergedError(f"without them the model fails{where} with {describe(failure)}") from failure
            error = verification.relative_error(expected, actual)
            if not error <= run.max_error:
                raise NotMergedError(verification.change_in_words(error, run.where))
        return replace(self, model=after)


def _runs(inputs: Inputs, exact: bool) -> Iterator[Run]:
    near, far = (_MAX_ERROR, _MAX_ERROR_LARGE) if exact else (1e-5, 1e-3)
    drawn = inputs.drawn_anew()
    large, small = "for inputs that are 1000 times as large", "for inputs that are a hundredth as large"
    yield Run(inputs, False, 1.0, near, "")
    yield Run(drawn, False, 1.0, near, "")
    yield Run(drawn.scaled(1000), False, 1.0, far, f" {large}")
    yield Run(drawn.scaled(0.01), False, 1.0, far, f" {small}")
    yield Run(drawn, False, 30.0, far, " for weights that are 30 times as large")
    yield Run(inputs, True, 1.0, near, " in training mode")
    yield Run(drawn.scaled(1000), True, 1.0, far, f" in training mode {large}")


def _outputs(model: nn.Module, run: Run, watch: _Watch | None = None) -> list[Tensor]:
    """Return a model's outputs. Scaling its parameters back may change them by rounding; the run may change buffers."""
    model.train(run.is_training)
    _scale(model, run.factor)
    try:
        with watch or _Watch():
            return verification.outputs_of(model, run.inputs)
    finally:
        _scale(model, 1 / run.factor)


def _scale(model: nn.Module, factor: float) -> None:
    if factor == 1:
        return
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.mul_(factor)


class _Watch(TorchDispatchMode):
    """Records the tensors that operations use, and whether numbers are read out of them; switches dropout off.

    Dropout draws a number per unit, so a model with fewer units would drop different ones.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: set[int] = set()
        self.reads_numbers = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        with suppress(RuntimeError, NotImplementedError):  # sparse tensors have no storage
            self.used.update(_storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        if func is aten._local_scalar_dense.default:
            self.reads_numbers = True
        if func is aten.bernoulli_.float:
            return args[0].fill_(float((args[1] if len(args) > 1 else kwargs.get("p", 0.5)) > 0))
        if func is aten.native_dropout.default:
            inputs, probability, is_training = args
            scale = 1 / (1 - probability) if is_training and probability < 1 else float(not is_training)
            return inputs * scale, torch.ones_like(inputs, dtype=torch.bool)
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _add_noise(model: nn.Module) -> None:
    """Add noise to all parameters, so that none is zero and none are equal by chance."""
    generator = torch.Generator().manual_seed(_SEED)
    for parameter in model.parameters():
        if not (parameter.is_floating_point() or parameter.is_complex()) or not parameter.numel():
            continue
        numbers = parameter.detach()
        size = float(numbers.abs().double().square().mean().sqrt())
        if size == 0:  # zeros have no scale; use that of a default initialisation
            size = parameter[0].numel() ** -0.5 / _NOISE if parameter.ndim > 1 else 1.0
        dtype = torch.complex128 if numbers.is_complex() else torch.float64
        noise = torch.randn(numbers.shape, generator=generator, dtype=dtype)
        numbers += (_NOISE * size * noise).to(numbers)
