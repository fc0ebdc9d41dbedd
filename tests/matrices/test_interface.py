from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.rows import Rows
from tests.matrices.interface import CHECKS, Asked, MatrixCase, PieceCase, check_all, laid_out, matrix_cases


def test_nothing_of_the_interface_goes_untested() -> None:
    assert {name for name in dir(Rows) if not name.startswith("_")} == CHECKS.keys()
    assert Rows.__abstractmethods__ <= CHECKS.keys()


def test_rows_cannot_be_made_without_all_methods() -> None:
    class Incomplete(Rows):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Incomplete(1, [1], [torch.float32], torch.device("cpu"))  # type: ignore[abstract]


@given(matrix_cases())
@example(MatrixCase(300, (PieceCase((700,), torch.float32, "row-major"),), 0, 1))
@example(MatrixCase(7, (PieceCase((70_000,), torch.float32, "column-major"),), 0, 1))
@settings(max_examples=60, deadline=None)
def test_dense_rows_are_what_brute_force_says(case: MatrixCase) -> None:
    pieces: list[Tensor | list[Tensor]] = [
        laid_out(tensor, piece.layout) for tensor, piece in zip(case.tensors(), case.pieces, strict=True)
    ]
    rows = DenseRows(pieces)
    check_all(Asked(rows, case, has_one_vector=rows.is_small))
