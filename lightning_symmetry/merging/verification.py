"""Whether two networks compute the same: their inputs, and the distance of their outputs."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_symmetry.brief import brief

_SEED = 0
# Errors that can arise when sums of weights are rounded to their dtype, by the coarsest dtype of the parameters.
_MAX_ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class MergeError(RuntimeError):
    """Raised if no merged network can be verified; the message says why."""


class NotMergedError(Exception):
    """Raised within this folder if units of one layer cannot be merged; users read the message as the reason."""


def describe(error: Exception) -> str:
    r"""Return the type of an error and the first line of its message.

    >>> describe(ValueError("too wide\nat line 3"))
    'ValueError: too wide'
    """
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@dataclass(frozen=True)
class Inputs:
    """The positional and keyword arguments for a model."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def of(example_inputs: object) -> Inputs:
        """Read the argument ``example_inputs``: a tensor, a tuple of tensors, or a dict with strings for keys."""
        if isinstance(example_inputs, Tensor):
            return Inputs((example_inputs,), {})
        if isinstance(example_inputs, tuple) and example_inputs and all(isinstance(x, Tensor) for x in example_inputs):
            return Inputs(example_inputs, {})
        if isinstance(example_inputs, dict) and example_inputs and all(isinstance(key, str) for key in example_inputs):
            return Inputs((), example_inputs)
        raise TypeError(
            "Expected argument `example_inputs` to be a tensor, a tuple of tensors or a dict of keyword arguments "
            f"but got {brief(example_inputs)}."
        )

    def call(self, model: nn.Module) -> Any:
        """Call the model with copies of these inputs, because it may change them in place."""
        copied = self._mapped(lambda tensor: tensor.detach().clone())
        return model(*copied.args, **copied.kwargs)

    def drawn_anew(self) -> Inputs:
        """Return reproducible random inputs of the same shapes.

        Floating point numbers are drawn from a normal distribution with the mean and standard deviation of the example.
        Other numbers are permuted along the first dimension, because random ones may be invalid, for example as tokens.
        """
        generator = torch.Generator().manual_seed(_SEED)
        return self._mapped(lambda tensor: _like(tensor, generator))

    def scaled(self, factor: float) -> Inputs:
        """Return these inputs with all floating point numbers multiplied by a factor."""
        return self._mapped(lambda tensor: tensor * factor if tensor.is_floating_point() else tensor)

    def exact(self) -> Inputs:
        """Return these inputs in float64 and complex128."""
        return self._mapped(_exact)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return Inputs(*tree_map_only(Tensor, change, (self.args, self.kwargs)))


def _exact(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _like(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.numel():
        return value
    if value.is_floating_point():
        example = value.detach().to("cpu", torch.float64)
        numbers = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return (example.mean() + example.std(correction=0) * numbers).to(value)
    if value.ndim == 0:
        return value
    # Inputs that belong together, such as tokens and their mask, are permuted alike.
    order = torch.randperm(len(value), generator=torch.Generator().manual_seed(_SEED))
    return value[order.to(value.device)]


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return the tensors that a model returns, with the same random numbers at every call."""
    random.seed(_SEED)
    np.random.seed(_SEED)
    torch.default_generator.manual_seed(_SEED)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(_SEED)
    with torch.no_grad():
        return tensors_in(inputs.call(model))


def exact_copy(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return a copy in float64; an unchanged copy if the model fails in float64, for example by a cast of its own."""
    twin = copy.deepcopy(model)
    to_float64(twin)
    try:
        outputs_of(copy.deepcopy(twin), inputs.exact())
    except Exception:  # a model can raise anything
        return copy.deepcopy(model)
    return twin


def to_float64(model: nn.Module) -> None:
    """Convert the parameters and buffers of a model to float64 or complex128, in place."""
    model.double()  # which modules may override: a LightningModule updates its dtype
    model._apply(_exact)


def is_exact(model: nn.Module) -> bool:
    """Return whether all parameters are float64 or complex128."""
    numbers = [each.dtype for each in model.parameters() if each.is_floating_point() or each.is_complex()]
    return all(dtype in (torch.float64, torch.complex128) for dtype in numbers)


def tensors_in(output: object) -> list[Tensor]:
    """Return all tensors in nested lists, tuples and dicts, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for part in output for tensor in tensors_in(part)]
    return []


def relative_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest ``||a - b|| / ||a||`` of the tensors; inf if their number, shapes or finiteness differ."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return float("inf")
    return max((_distance(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _distance(a: Tensor, b: Tensor) -> float:
    exact = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to("cpu", exact), b.to("cpu", exact)  # some devices have no float64
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return float("inf")
    # Equal infinities, such as those of masked values, have no distance.
    a, b = a[finite], b[finite]
    difference, norm = float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(a))
    if difference == 0:
        return 0.0
    return difference / norm if norm else float("inf")


def change_in_words(error: float, where: str = "") -> str:
    """Return the reason not to merge units: the outputs change by this relative error."""
    if math.isinf(error):
        return f"removing them changes the shapes of the outputs, or which of them are finite{where}"
    return f"removing them changes the outputs{where}: the error is {error:.1e}"


class Original(NamedTuple):
    """The outputs of the original model, with which others are compared.

    They are computed in float64 if the model runs in it: then errors of the outputs come from the weights alone.
    """

    runs: tuple[tuple[Inputs, list[Tensor]], ...]  # pairs of inputs and outputs
    is_exact: bool  # whether the outputs were computed in float64
    max_error: float  # the relative error that rounding can cause, by the coarsest dtype of the parameters

    @staticmethod
    def of(model: nn.Module, inputs: Inputs) -> Original:
        """Run a model in evaluation mode on the example inputs and on random ones.

        Raises a ValueError if the model fails on the example inputs or returns no tensor, and a MergeError if its
        outputs are not reproducible.
        """
        try:
            outputs = outputs_of(copy.deepcopy(model), inputs)
        except Exception as error:  # a model can raise anything
            raise ValueError(
                "Expected argument `example_inputs` to be what `model` can be called with, but it raised "
                f"{describe(error)}"
            ) from error
        if not outputs:
            raise ValueError("Expected argument `model` to return tensors for `example_inputs`, but it returns none.")
        dtypes = {each.dtype.to_real() for each in model.parameters()} | {each.dtype.to_real() for each in outputs}
        twin = exact_copy(model, inputs)
        exact = is_exact(twin)
        inputs = inputs.exact() if exact else inputs
        max_error = max((_MAX_ERRORS.get(dtype, 0.0) for dtype in dtypes), default=0.0)
        runs = [(inputs, outputs_of(twin, inputs))]
        if not relative_error(runs[0][1], outputs_of(twin, inputs)) <= max_error:
            raise MergeError("the model returns something else at every call, so no merge of its units can be verified")
        drawn = inputs.drawn_anew()
        with suppress(Exception):  # a model may refuse random inputs, for example if it expects probabilities
            runs.append((drawn, outputs_of(twin, drawn)))
        return Original(tuple(runs), exact, max_error)

    def check(self, merged: nn.Module) -> None:
        """Check that the outputs of a merged model differ by rounding only."""
        try:
            error = self.error_of(merged)
        except Exception as failure:  # a model may depend on its widths anywhere
            raise NotMergedError(f"without them the model fails with {describe(failure)}") from failure
        if not error <= self.max_error:
            raise NotMergedError(change_in_words(error))

    def error_of(self, model: nn.Module) -> float:
        """Return the largest relative error of the outputs of another model in evaluation mode."""
        twin = copy.deepcopy(model)
        if self.is_exact:
            to_float64(twin)
        return max(relative_error(outputs, outputs_of(twin, inputs)) for inputs, outputs in self.runs)
