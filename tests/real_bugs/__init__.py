"""Bugs that people reported, each made again in a few lines, with its mended twin; docs/real_bugs.md is the table."""
