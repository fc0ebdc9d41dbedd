"""Tracing one step of a training: at which operation the gradient of units that do not train stops.

Modules are followed by forward hooks (``calls``), operations by hooks on the nodes of autograd's graph (``graph``), and
units through operations by labels (``labels``); ``kinds`` says why a gradient stops. All of it lasts for one step
(``trace``). May import ``verdicts``, ``units`` and what is below.
"""
