"""Making the same network with fewer units: units that compute the same become one.

May import engine and all below. Which tensors belong together is asked of the dependency graph of torch-pruning.
"""
