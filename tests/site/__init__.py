"""Tests of the documentation site that `make docs` has built; `make test-docs` builds it and runs them."""
