"""Repair of a symmetry: new numbers for equal units, and a matching optimizer state.

``planning`` decides from a report what to change, ``drawing`` makes the new numbers, ``writing`` writes them into
parameters and resets the optimizer's state for them, ``outgoing`` zeroes the weights that read dead units.
May import ``verdicts``, ``units`` and all below. The only folder that changes a model.
"""
