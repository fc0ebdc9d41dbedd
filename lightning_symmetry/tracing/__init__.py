"""Tracing one step of a training: at which operation the gradient of units that do not train stops.

Forward hooks record calls of modules (``calls``), hooks on the nodes of autograd's graph record gradients (``graph``),
and labels follow units through operations (``labels``). ``explaining`` finds where a gradient stops, ``kinds`` why, and
``keeping`` what keeps equal units equal. ``trace`` does all of this for one step. ``autograd`` wraps private functions
of PyTorch. May import ``verdicts``, ``units`` and folders below.
"""
