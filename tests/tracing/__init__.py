"""Tests of the trace of gradients."""
