"""Several processes: what each rank holds of a tensor, and how all of them answer questions about its rows.

May import matrices.
"""
