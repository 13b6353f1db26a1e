"""Every test sees eight CPU devices, so that sharding is exercised without hardware.

What is compiled is kept beside pytest's own cache: compiling is most of what the tests cost, and
several of them, and every later run, compile the same programs. Nor are they optimised: what a
test runs is small, and compiling it so takes a third less; without the emitters of fused loops,
which jaxlib 0.10 can do without, half of that.
"""

import os
from importlib.metadata import version
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
wanted = {"--xla_force_host_platform_device_count": "8"}
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
    wanted["--xla_cpu_use_fusion_emitters"] = "false"
flags = os.environ.get("XLA_FLAGS", "")
more = [f"{name}={value}" for name, value in wanted.items() if name not in flags]
os.environ["XLA_FLAGS"] = " ".join([flags, *more]).strip()

kept = Path(__file__).parents[1] / ".pytest_cache/jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
