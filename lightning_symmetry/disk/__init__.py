"""Checkpoints on disk: which of their units are duplicates, without the code that made them.

May import engine and all below. Knows no file that is not a checkpoint, and runs no code that a file brings along.
"""
