"""Checkpoints on disk: which of their units are duplicates, without the code of the model.

May import engine and all below. Never executes code from a file.
"""
