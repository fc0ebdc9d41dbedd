"""The path from which version 0.2 imported :class:`CheckpointError`, for code that catches what ``scan`` raises."""

from lightning_symmetry.disk.files import CheckpointError as CheckpointError
