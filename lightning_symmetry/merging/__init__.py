"""Merging: the same network with fewer units, after units that compute the same have become one.

May import engine and all below. Which tensors belong together is taken from the dependency graph of torch-pruning.
"""
