"""Shared by all tests: the CPU as eight virtual devices, and one compilation cache."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("AGRICLIP_CACHE", str(Path(tempfile.gettempdir()) / "agriclip_jax-tests"))

import jax

jax.config.update("jax_compilation_cache_dir", os.environ["AGRICLIP_CACHE"] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
