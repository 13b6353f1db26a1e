"""Every test sees eight CPU devices, so that sharding is exercised without hardware.

What is compiled is kept beside pytest's own cache: compiling is most of what the tests cost, and
several of them, and every later run, compile the same programs. Nor are they optimised: what a
test runs is small, and compiling it so takes a third less.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

kept = Path(__file__).parents[1] / ".pytest_cache/jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
