"""How many histories are tried: `FRESHET_LAWS` = quick (a few), ci (the default), deep (many, random seeds)."""

import os

from hypothesis import HealthCheck, settings

_FAST = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
_CALM = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

for name, examples, random in (("quick", 5, False), ("ci", 15 if _FAST else 10, False), ("deep", 500, True)):
    settings.register_profile(
        name, max_examples=examples, derandomize=not random, deadline=None, print_blob=True, suppress_health_check=_CALM
    )
settings.load_profile(os.environ.get("FRESHET_LAWS", "ci"))
