"""The Symmetry tab of TensorBoard. Nothing here imports torch: TensorBoard loads it at every start."""

from importlib.resources import files

STATIC = files(__name__) / "static"
"""The folder with the files of the page: modules of JavaScript and a style sheet."""
