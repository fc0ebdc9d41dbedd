from __future__ import annotations

import os

from hypothesis import settings

# The same examples at every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeat", derandomize=True)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

collect_ignore = ["benchmarks"]  # they need packages of their own
