"""Shared by all tests: the CPU as eight virtual devices, and one compilation cache."""

import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling for eight small devices is most of the tests' time: no optimisation that only pays in long runs.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # The older emitters compile four times as fast; jax 0.11 has no such flag and needs none.
        "" if importlib.metadata.version("jax").startswith("0.11") else "--xla_cpu_use_fusion_emitters=false",
        # Eight devices that share two busy cores may keep each other waiting for longer than XLA's 40 seconds ...
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
)
# ... and for ever where XLA's pool has no thread left for the device they wait for; this is the size of its pool.
os.environ["NPROC"] = "64"
os.environ.setdefault("AGRICLIP_CACHE", str(Path(tempfile.gettempdir()) / "agriclip_jax-tests"))

import jax
import pytest

jax.config.update("jax_compilation_cache_dir", os.environ["AGRICLIP_CACHE"] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A small ALive folder: the embedded corpus at 32 pixels, three training examples of each class."""
    from agriclip_jax.data import corpus

    out = tmp_path_factory.mktemp("data") / "alive"
    corpus.build(out, size=32, count={"train": 3, "val": 1, "test": 1})
    return out


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The workdir of a small run that has made no step yet, trained on what lies beside it in alive/."""
    from colour_model import folder, photos
    from tiny import config

    from agriclip_jax import recipe
    from agriclip_jax.checkpoint import Checkpoints
    from agriclip_jax.data import captions, records, sources, tokenizers
    from agriclip_jax.data import survey as surveys

    root = tmp_path_factory.mktemp("run")
    apples = folder(root / "apples", {"red_apple": photos("red", 15), "green_apple": photos("green", 15)})
    survey = surveys.survey(sources.find([str(apples)]))
    records.write(root / "alive", survey.splits(), name="alive", description="apples", datasets=survey.datasets)
    workdir, settings = root / "workdir", config(text__vocab_size=600)
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(settings.to_dict()), encoding="utf-8")
    names = survey.datasets["apples"].classes
    known = [{"dataset": "apples", "domain": "other", "class_key": k, "class_name": name} for k, name in names.items()]
    (workdir / "classes.json").write_text(json.dumps(known), encoding="utf-8")
    said = [text for name in names.values() for text, _ in captions.captions(name, "other", "apples")]
    tokenizer = tokenizers.train(said, 600)
    tokenizer.save(workdir / "tokenizer.json")
    _, init = recipe.learner(settings, tokenizer)
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(jax.jit(init)(jax.random.key(0)), {})
    checkpoints.close()
    return root
