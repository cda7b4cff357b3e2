"""A CLIP of transformers, adapted here and exported, answers every picture in transformers as it does here."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import originals
import pytest
from tiny import RECIPE, SMALL, call

from agriclip_jax import inference, main
from agriclip_jax.data import pipeline, tokenizers
from agriclip_jax.data.records import Alive
from agriclip_jax.data.views import EvalView
from agriclip_jax.evaluate import tasks, zeroshot

pytestmark = pytest.mark.parity

BLOCKS = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


@dataclasses.dataclass(frozen=True)
class InTransformers:
    """A folder as transformers computes it: an `evaluate.features.Embedder`."""

    model: object
    processor: object
    view: EvalView
    fingerprint: str = "transformers"

    @property
    def image_size(self):
        return self.view.size

    @property
    def logit_scale(self):
        return float(self.model.logit_scale.detach().exp())

    def look(self, images):
        pixels = self.processor(images=list(images), return_tensors="pt")
        z = self.model.get_image_features(**pixels).pooler_output.detach().numpy()
        return z, z / np.linalg.norm(z, axis=1, keepdims=True)

    def embed_texts(self, texts, *, normalise=True):
        rows = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
        z = self.model.get_text_features(**rows).pooler_output.detach().numpy()
        return z / np.linalg.norm(z, axis=1, keepdims=True) if normalise else z


@pytest.fixture(scope="module")
def clip(torch, corpus, tmp_path_factory):
    """A folder of transformers: a CLIP of random weights with a tokenizer of the corpus's words."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tokenizers.train(pipeline.captions(Alive.open(corpus).source("train"), ("template",)), 600)
    ends = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id}
    words = BLOCKS | ends | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 20}
    vision = BLOCKS | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(vision_config=vision, text_config=words, projection_dim=24)
    originals.made(transformers.CLIPModel, config).save_pretrained(folder)
    for name, content in tokenizer.transformers_files(20).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def adapted(clip, corpus, tmp_path_factory):
    """The workdir of a run that started from it."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    towers = ("image.width", "image.depth", "image.heads", "image.patch", "embed_dim", "text.w", "text.d", "text.h")
    rest = {k: v for k, v in SMALL.items() if not k.startswith((*towers, "text.v"))}
    asked = rest | {"init.model": clip, "data.path": corpus, "image_size": 32, "text.context_length": 20}
    asked |= {"optimizer.learning_rate": 1e-3, "total_steps": 20}
    options = [f"--config.{key}={value}" for key, value in asked.items()]
    assert main.run([f"--config={RECIPE}", f"--workdir={workdir}", *options]) == 0
    return workdir


def test_the_run_has_learnt(clip, adapted):
    losses = [json.loads(line) for line in (adapted / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["loss/contrastive"] < losses[0]["loss/contrastive"]


def test_the_zero_shot_table_is_the_same_in_transformers(adapted, corpus, tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "hf"
    status, said = call(monkeypatch, capsys, "export.py", f"--ckpt={adapted}", "--format=hf", f"--out={out}")
    assert status == 0, said.err
    processor = transformers.CLIPProcessor.from_pretrained(out, backend="pil")
    there = InTransformers(transformers.CLIPModel.from_pretrained(out).eval(), processor, EvalView(32))
    asked = tasks.from_alive(Alive.open(corpus), "test")
    theirs = {result.task.name: result for result in zeroshot.evaluate(there, asked)}
    record = json.loads(Path(adapted / "zeroshot.json").read_text())
    assert {result["dataset"]: result["metrics"]["acc1"] for result in record["results"]} == {
        name: pytest.approx(result.metrics.top1) for name, result in theirs.items()
    }
    for ours in zeroshot.evaluate(inference.load(adapted), asked):
        answers = theirs[ours.task.name].answers
        np.testing.assert_array_equal(ours.answers.predicted, answers.predicted)
        np.testing.assert_array_equal(ours.answers.rank, answers.rank)
