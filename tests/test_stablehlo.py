"""A model leaves as StableHLO: functions that give our embeddings where this package cannot be imported."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tokenizers
from colour_model import photos
from tokenizers import models, normalizers

from agriclip_jax import inference
from agriclip_jax.data import views
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.weights import stablehlo, standalone

# Ahead of a program: what must not be imported cannot be.
ALONE = """
import sys
sys.modules |= dict.fromkeys(["agriclip_jax", "flax", "orbax", "optax", "ml_collections"])
"""


def programs(folder):
    """The programs in the README of an export."""
    return [
        part.split("```")[0] for part in (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    ]


def ran(folder, program):
    """What a program prints in a fresh interpreter, read as JSON."""
    command = [sys.executable, "-c", ALONE + program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def model(run):
    return inference.load(run / "workdir")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("stablehlo"), []
    stablehlo.write(model, out, said.append)
    assert "cpu, cuda, tpu" in said[0]
    assert f"'jax>={jax.__version__}'" in (out / "README.md").read_text(encoding="utf-8")
    (out / "photo.jpg").write_bytes(photos("red", 1)[0])
    return out


def test_the_program_of_the_readme_gives_our_embeddings_of_any_number_of_rows(model, folder):
    (program,) = programs(folder)
    shown = (
        program
        + """
import json
rng = np.random.default_rng(0)
found = []
for count in (1, 5):
    found.append(embed("image", rng.integers(0, 256, (count, 16, 16, 3), np.uint8)).tolist())
found.append(embed("image", pixels("photo.jpg")[None]).tolist())
found.append(embed("text", tokens(["A red  Apple &amp; more", "", "a green apple " * 20])).tolist())
print(json.dumps([chances[0].tolist(), *found]))
"""
    )
    chances, *found = ran(folder, shown)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (count, 16, 16, 3), np.uint8) for count in (1, 5)]
    batches.append(views.load_view(photos("red", 1)[0], views.EvalView(16))[None])
    ours = [model.embed_images(batch) for batch in batches]
    ours.append(model.embed_texts(["A red  Apple &amp; more", "", "a green apple " * 20]))
    for one, other in zip(ours, found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    texts = model.embed_texts(["a photo of a healthy leaf", "a photo of a leaf with rust"])
    odds = np.exp(model.logit_scale * ours[2] @ texts.T)
    np.testing.assert_allclose(chances, (odds / odds.sum())[0], atol=1e-5)


def test_a_function_serves_every_platform_and_any_batch(folder):
    from jax import export

    exported = export.deserialize(bytearray((folder / "image.stablehlo").read_bytes()))
    assert exported.platforms == stablehlo.PLATFORMS
    *_, rows = exported.in_avals
    assert str(rows.shape[0]) == "batch" and rows.shape[1:] == (16, 16, 3) and rows.dtype == np.uint8


def test_the_program_prepares_photos_and_texts_as_siglip_does_and_adds_its_bias(model, tmp_path, monkeypatch):
    vocabulary = {"<unk>": 0, "</s>": 1, **{letter: 2 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens(["</s>"])
    tokenizer, view = Tokenizer(backend), views.EvalView(24, "squash", filter="bilinear")
    siglip = SimpleNamespace(
        tokenizer=tokenizer,
        view=view,
        towers=model.towers,
        logit_scale=2.0,
        params={"logit_bias": np.float32(-1.5)},
    )
    text = standalone.program(siglip, "", "def embed(tower, rows):\n    return np.eye(2)[: len(rows)]\n")
    assert "ftfy" not in text
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "photo.jpg").write_bytes(photos("red", 1)[0])
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(text.split("```")[1].removeprefix("python"), found)
    np.testing.assert_array_equal(found["pixels"]("photo.jpg"), views.load_view(photos("red", 1)[0], view))
    texts = ["An Apple", "", "a text of more than its twelve tokens"]
    np.testing.assert_array_equal(found["tokens"](texts), tokenizer.encode(texts, 12))
    np.testing.assert_allclose(found["chances"], 1 / (1 + np.exp(-np.array([[2.0 - 1.5, -1.5]]))))
