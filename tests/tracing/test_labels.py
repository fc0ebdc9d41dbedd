"""Labels after operations are compared with the true dependencies of each number, by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional

from lightning_symmetry.tracing.autograd import operation_of
from lightning_symmetry.tracing.labels import MANY, along, carry, join, merge

# By name: the shape of the input, the operation, and whether its rule is exact rather than an upper bound.
Operation = tuple[tuple[int, ...], Callable[[Tensor], Tensor], bool]


def fixed(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


OPERATIONS: dict[str, Operation] = {
    # Operations that move, drop or join numbers.
    "t": ((3, 4), lambda x: x.t(), True),
    "permute": ((2, 3, 4), lambda x: x.permute(2, 0, 1), True),
    "view": ((2, 6), lambda x: x.view(3, 4), True),
    "slice": ((3, 6), lambda x: x[:, 1:4], True),
    "strided slice": ((3, 6), lambda x: x[:, ::2], True),
    "select": ((3, 6), lambda x: x[1], True),
    "split": ((3, 6), lambda x: x.split([2, 4], 1)[1], True),
    "unbind": ((3, 4), lambda x: x.unbind(0)[2], True),
    "cat": ((3, 4), lambda x: torch.cat([fixed(3, 2), x], 1), True),
    "stack": ((3, 4), lambda x: torch.stack([x, fixed(3, 4)], 1), True),
    "pad": ((3, 4), lambda x: functional.pad(x, (1, 2)), True),
    "index": ((4, 3), lambda x: x[torch.tensor([2, 0, 0])], False),
    "flip": ((3, 4), lambda x: x.flip(1), True),
    "roll": ((3, 4), lambda x: x.roll(1, 1), True),
    "squeeze": ((3, 1, 4), lambda x: x.squeeze(1), True),
    "shuffle": ((2, 4, 3), lambda x: functional.channel_shuffle(x, 2), False),
    "topk": ((3, 6), lambda x: x.topk(2)[0], True),
    # Elementwise operations.
    "tanh": ((3, 4), torch.tanh, True),
    "mul": ((3, 4), lambda x: x * fixed(4), True),
    "expand": ((1, 4), lambda x: x.expand(3, 4), True),
    "repeat": ((2, 3), lambda x: x.repeat(2, 2), True),
    "add": ((4,), lambda x: x + fixed(3, 4), True),
    "glu": ((3, 6), functional.glu, True),
    "maximum": ((3, 4), lambda x: x.maximum(fixed(3, 4)), False),
    # Operations that mix numbers.
    "mm, left": ((3, 4), lambda x: x @ fixed(4, 5), True),
    "mm, right": ((4, 5), lambda x: fixed(3, 4) @ x, True),
    "addmm, bias": ((5,), lambda x: torch.addmm(x, fixed(3, 4), fixed(4, 5)), True),
    "bmm, left": ((2, 3, 4), lambda x: torch.bmm(x, fixed(2, 4, 5)), True),
    "bmm, right": ((2, 4, 5), lambda x: torch.bmm(fixed(2, 3, 4), x), True),
    "convolution, input": ((2, 4, 6), lambda x: functional.conv1d(x, fixed(4, 2, 3), groups=2), False),
    "convolution, whole input": ((2, 4, 3), lambda x: functional.conv1d(x, fixed(4, 2, 3), groups=2), True),
    "convolution, weight": ((4, 3, 3), lambda x: functional.conv1d(fixed(2, 3, 6), x), True),
    "transposed, input": ((2, 4, 6), lambda x: functional.conv_transpose1d(x, fixed(4, 2, 3), groups=2), False),
    "transposed, weight": ((4, 2, 3), lambda x: functional.conv_transpose1d(fixed(2, 4, 6), x, groups=2), False),
    "embedding": ((5, 4), lambda x: functional.embedding(torch.tensor([[0, 4], [1, 1]]), x), False),
    "softmax": ((3, 4), lambda x: x.softmax(1), True),
    "layer norm": ((3, 4), lambda x: functional.layer_norm(x, (4,)), True),
    "group norm": ((2, 4, 3), lambda x: functional.group_norm(x, 2), True),
    "batch norm": ((3, 4), lambda x: functional.batch_norm(x, None, None, training=True), True),
    "average pool": ((2, 3, 4), lambda x: functional.avg_pool1d(x, 2), False),
    "sum": ((3, 4, 2), lambda x: x.sum(1), True),
    "mean": ((3, 4), lambda x: x.mean(), True),
    "attention, query": ((2, 3, 4), lambda x: attention(x, fixed(2, 5, 4), fixed(2, 5, 4)), False),
    "attention, key": ((2, 5, 4), lambda x: attention(fixed(2, 3, 4), x, fixed(2, 5, 4)), False),
    "attention, value": ((2, 5, 4), lambda x: attention(fixed(2, 3, 4), fixed(2, 5, 4), x), False),
    # Complex numbers and their parts.
    "as complex": ((3, 4, 2), lambda x: torch.view_as_complex(x).abs(), True),
    "parts": ((3, 4), lambda x: torch.complex(x, fixed(3, 4)).real, True),
    "permuted": ((3, 4, 2), lambda x: torch.view_as_complex(x).T.conj().imag, False),
    "polar": ((3, 4), lambda x: torch.polar(x, fixed(3, 4)).real, True),
    "angle": ((3, 4), lambda x: torch.complex(x, fixed(3, 4)).angle(), True),
    "complex product": ((3, 4, 2), lambda x: torch.mm(torch.view_as_complex(x), fixed(4, 3) + 1j).abs(), True),
    "joined": ((3, 4, 2), lambda x: functional.pad(torch.view_as_complex(x), (1, 0)).real, False),
    "Fourier, of real": ((3, 4), lambda x: torch.fft.rfft(x).abs(), True),
    "Fourier, to real": ((3, 4, 2), lambda x: torch.fft.irfft(torch.view_as_complex(x), n=5), False),
    "Fourier, two dimensions": ((2, 3, 4), lambda x: torch.fft.fft2(x + 0j).abs(), False),
    "an operation without a rule": ((3, 3), torch.linalg.inv, False),
}


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]


def carried(function: Callable[[Tensor], Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels after all operations of a function, and the Jacobian by brute force."""
    inputs = torch.randn(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    outputs = function(inputs)
    chain: list[tuple[Any, int]] = []

    def find(node: Any) -> bool:
        """Append the operations from the inputs to this node; return whether there are any."""
        for index, (child, _) in enumerate(node.next_functions):
            if child is not None and (getattr(child, "variable", None) is inputs or find(child)):
                chain.append((node, index))
                return True
        return False

    assert find(outputs.grad_fn)
    known: Tensor | None = labels
    shape: tuple[int, ...] = tuple(labels.shape)
    output = 0
    for place, (node, index) in enumerate(chain):
        behind = carry(node, index, known, shape, may_read=True)
        following = chain[place + 1][0].next_functions[chain[place + 1][1]] if place + 1 < len(chain) else None
        output = following[1] if following else _output_of(outputs, node)
        known, shape = behind[output], tuple(node._input_metadata[output].shape)
    if known is None:
        known = torch.full(shape, MANY, dtype=torch.int32)
    assert known.shape == outputs.shape
    jacobian = torch.autograd.functional.jacobian(function, inputs.detach())
    return known.flatten(), jacobian.reshape(outputs.numel(), inputs.numel())


def _output_of(outputs: Tensor, node: Any) -> int:
    return int(outputs.output_nr) if len(node._input_metadata) > 1 else 0


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_labels_hold_all_that_a_number_depends_on(name: str, data: Any) -> None:
    shape, function, is_exact = OPERATIONS[name]
    numel = torch.Size(shape).numel()
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=numel, max_size=numel))
    labels = torch.tensor(drawn, dtype=torch.int32).view(shape)
    found, jacobian = carried(function, labels)
    flat = labels.flatten().tolist()
    for number, label in enumerate(found.tolist()):
        expected = {flat[i] for i in jacobian[number].nonzero().flatten().tolist()} - {0}
        if label != MANY:
            assert expected <= {label}
            assert not is_exact or expected == {label} - {0}
        elif is_exact:
            assert len(expected) > 1


def test_labels_of_sums_and_along_dimensions() -> None:
    one, other = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 1], [0, 1]])
    joined = join(one, other)
    assert joined is not None
    assert joined.tolist() == [[3, 1], [2, MANY]]
    assert join(one, None) is None
    assert merge(one, []).equal(one)
    assert along(torch.tensor([[1, 2], [1, 0]]), -1) is not None
    assert along(torch.tensor([[1, 2], [2, 0]]), -1) is None
    assert along(torch.tensor([1, 2]), 1) is None


def test_tensors_that_may_be_computed_anew_are_not_read() -> None:
    inputs = torch.ones(4, 3, requires_grad=True)
    node = inputs[torch.tensor([2, 0])].grad_fn
    assert operation_of(node) == "Index"
    labels = torch.tensor([[1], [2], [3], [0]], dtype=torch.int32).expand(4, 3).contiguous()
    assert carry(node, 0, labels, (4, 3), may_read=False) == [None]
    [read] = carry(node, 0, labels, (4, 3), may_read=True)
    assert read is not None
    assert read[:, 0].tolist() == [3, 1]
