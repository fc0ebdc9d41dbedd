"""Whether two networks compute the same: what they are fed with, and how far their outputs lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.arguments import check_module
from lightning_symmetry.brief import brief
from lightning_symmetry.merging.errors import describe

_SEED = 0
_MAX_ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Inputs:
    """What a model is called with.

    Attributes:
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def of(example_inputs: object) -> Inputs:
        """Read the argument ``example_inputs``.

        Raises:
            TypeError: if it is neither a tensor, nor a tuple of tensors, nor a dict with strings for keys.
        """
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
        """Run the model on copies of these inputs, which it may change in place."""
        return model(*map(_copied, self.args), **{name: _copied(value) for name, value in self.kwargs.items()})

    def drawn_anew(self) -> Inputs:
        """Random inputs of the same shapes, always the same ones.

        Floating point numbers are normal, with the mean and the spread of the example; others are permuted along the
        first dimension, as random ones may mean nothing to the model.
        """
        generator = torch.Generator().manual_seed(_SEED)
        return Inputs(
            tuple(_like(value, generator) for value in self.args),
            {name: _like(value, generator) for name, value in self.kwargs.items()},
        )


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _like(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.numel():
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


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Random numbers drawn inside leave no trace in PyTorch's global generators, and gradients can be traced."""
    # A generator of CUDA that was never used has no state to keep, and asking for it would start CUDA.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.inference_mode(False):
        yield


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a model returns, with the same random numbers at every call. Its modes stay as they are."""
    torch.default_generator.manual_seed(_SEED)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(_SEED)
    with torch.no_grad():
        return tensors_in(inputs.call(model))


def tensors_in(output: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts, in their order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for part in output for tensor in tensors_in(part)]
    return []


def relative_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """The largest ``||a - b|| / ||a||`` over the tensors; infinite if they differ in number, shape or finiteness."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return float("inf")
    return max((_distance(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _distance(a: Tensor, b: Tensor) -> float:
    exact = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to("cpu", exact), b.to("cpu", exact)  # some devices have no float64
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return float("inf")
    # Minus infinity for what is masked out is the same on both sides; it has no distance.
    a, b = a[finite], b[finite]
    difference, norm = float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(a))
    if difference == 0:
        return 0.0
    return difference / norm if norm else float("inf")


@dataclass(frozen=True)
class Original:
    """What the original model returns, to hold others against.

    Attributes:
        runs: pairs of inputs and outputs.
    """

    runs: tuple[tuple[Inputs, list[Tensor]], ...]

    @staticmethod
    def of(model: nn.Module, inputs: Inputs) -> Original:
        """Run a model, which has to be in evaluation mode, on the example and on random inputs.

        Raises:
            ValueError: if the model cannot be run on the example, or returns no tensor.
        """
        check_module(model)
        try:
            outputs = outputs_of(model, inputs)
        except Exception as error:  # whatever a model may raise
            raise ValueError(
                "Expected argument `example_inputs` to be what `model` can be called with, but it raised "
                f"{describe(error)}"
            ) from error
        if not outputs:
            raise ValueError("Expected argument `model` to return tensors for `example_inputs`, but it returns none.")
        runs = [(inputs, outputs)]
        drawn = inputs.drawn_anew()
        with suppress(Exception):  # a model may rightly refuse random inputs, where it expects probabilities
            runs.append((drawn, outputs_of(model, drawn)))
        return Original(tuple(runs))

    def error_of(self, model: nn.Module) -> float:
        """How far the outputs of another model, which has to be in evaluation mode, lie from these at the most."""
        return max(relative_error(outputs, outputs_of(model, inputs)) for inputs, outputs in self.runs)

    @property
    def max_error(self) -> float:
        """The relative error that rounding accounts for, by the coarsest dtype of the outputs."""
        dtypes = {tensor.dtype.to_real() for _, outputs in self.runs for tensor in outputs}
        return max(_MAX_ERRORS.get(dtype, 0.0) for dtype in dtypes)
