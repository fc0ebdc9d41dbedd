"""Tracing one step of a training: at which operation the gradient of units that do not train stops.

Modules are followed by forward hooks (``calls``), operations by hooks on the nodes of autograd's graph (``graph``), and
units through operations by labels (``labels``); ``explaining`` finds where a gradient stops, ``kinds`` says why, and
``keeping`` what keeps equal units equal. All of it lasts for one step (``trace``). What PyTorch has no public function
for stands in ``autograd``. May import ``verdicts``, ``units`` and what is below.
"""
