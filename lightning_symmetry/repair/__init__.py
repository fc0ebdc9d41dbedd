"""The way out of a symmetry: which units are drawn anew, how, and what of the optimizer's state goes with them.

``planning`` decides by a report what is to change, ``drawing`` makes the new numbers, ``writing`` puts them into
parameters and clears what optimizers remember of the old ones, ``outgoing`` clears the weights that read dead units.
May import ``verdicts``, ``units`` and all below. The only folder that changes a model.
"""
