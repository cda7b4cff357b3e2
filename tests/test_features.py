"""What a model sees in a task's photos: one pass, kept in parts, continued, never mixed up."""

import dataclasses

import numpy as np
import pytest
from colour_model import ColourModel, folder, photos

from agriclip_jax.errors import RunFailure
from agriclip_jax.evaluate import features
from agriclip_jax.evaluate.tasks import load_tasks


@pytest.fixture
def task(tmp_path):
    broken = photos("red", 1)[0][:200]
    path = folder(tmp_path / "fruit", {"red": [*photos("red", 6), broken], "green": photos("green", 5)})
    (found,) = load_tasks(str(path))
    return found


def same(a, b):
    for name in ("features", "embeddings", "labels", "positions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.sources, a.captions, a.unreadable) == (b.sources, b.captions, b.unreadable)


def test_a_pass_gives_every_readable_photo_in_order_and_names_the_others(task):
    seen = features.of_task(ColourModel(), task)
    assert len(seen) == task.count == 11 and seen.labels.tolist() == [0] * 5 + [1] * 6
    assert seen.sources[0] == "fruit/green/000.jpg" and seen.positions.tolist() == list(range(11))
    assert [source for source, _ in seen.unreadable] == ["fruit/red/006.jpg"]
    np.testing.assert_allclose(np.linalg.norm(seen.embeddings, axis=1), 1, atol=1e-6)


def test_batches_are_of_one_size_but_for_the_last(task, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 4)
    model = ColourModel()
    few = features.of_task(model, task)
    assert model.calls == [4, 4, 3]
    same(few, features.of_task(ColourModel(), task))


def test_a_second_measure_costs_no_second_pass(task, tmp_path):
    first, second = ColourModel(), ColourModel()
    made = features.of_task(first, task, cache=tmp_path / "cache")
    closed = dataclasses.replace(task, photos=lambda: pytest.fail("a photo was read"))
    same(made, features.of_task(second, closed, cache=tmp_path / "cache"))
    assert first.calls and not second.calls


def test_a_killed_pass_goes_on_where_it_was(task, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 4)

    class Killed(ColourModel):
        def look(self, images):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().look(images)

    with pytest.raises(KeyboardInterrupt):
        features.of_task(Killed(), task, cache=tmp_path / "cache")
    rest, counted = Killed(), []
    seen = features.of_task(rest, task, cache=tmp_path / "cache", progress=counted.append)
    same(seen, features.of_task(ColourModel(), task))
    assert rest.calls == [3] and sum(counted) == 11


def test_a_damaged_part_is_made_anew(task, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 4)
    made = features.of_task(ColourModel(), task, cache=tmp_path)
    (first, second, _) = sorted(tmp_path.rglob("*.npz"))
    second.write_bytes(second.read_bytes()[:100])
    model = ColourModel()
    same(made, features.of_task(model, task, cache=tmp_path))
    assert sum(model.calls) == 7, "the first part was kept"
    first.write_bytes(second.read_bytes())  # a whole part, but of other photos
    same(made, features.of_task(ColourModel(), task, cache=tmp_path))
    first.write_bytes(b"no zip")
    same(made, features.of_task(ColourModel(), task, cache=tmp_path))


def test_another_model_other_photos_or_another_size_have_a_key_of_their_own(task, tmp_path):
    larger = ColourModel()
    larger.image_size = 32
    other = load_tasks(str(folder(tmp_path / "b" / "fruit", {"red": photos("red", 5), "green": photos("green", 6)})))[0]
    fewer = task.at("train")
    keys = [features.key(ColourModel(), task), features.key(ColourModel(tmp_path), task), features.key(larger, task)]
    keys += [features.key(ColourModel(), other), features.key(ColourModel(), fewer)]
    assert len(set(keys)) == 5
    assert features.key(ColourModel(), load_tasks(task.spec)[0]) == keys[0], "the same photos have the same key"


def test_a_part_without_a_readable_photo_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 2)
    (task,) = load_tasks(str(folder(tmp_path / "x", {"a": photos("red", 4), "b": photos("green", 2)})))
    files = sorted((tmp_path / "x").rglob("*.jpg"))
    read = task.photos

    def broken_later():
        for number, photo in enumerate(read()):
            yield photo._replace(image=b"") if number in (2, 3) else photo

    object.__setattr__(task, "photos", broken_later)
    seen = features.of_task(ColourModel(), task, cache=tmp_path / "cache")
    assert seen.positions.tolist() == [0, 1, 4, 5] and len(seen.unreadable) == 2 and len(files) == 6
    same(seen, features.of_task(ColourModel(), task, cache=tmp_path / "cache"))


def test_a_model_that_remembers_gives_the_same_rows_and_forgets_when_it_is_full(monkeypatch):
    class Reader(ColourModel):
        read = ()

        def embed_texts(self, texts, *, normalise=True):
            Reader.read += tuple(texts)
            return super().embed_texts(texts, normalise=normalise)

    monkeypatch.setattr(features, "TEXTS", 3)
    remembers = features.remembering(Reader())

    def asked(*texts, normalise=True):
        Reader.read = ()
        found = remembers.embed_texts(texts, normalise=normalise)
        np.testing.assert_array_equal(found, ColourModel().embed_texts(texts, normalise=normalise))
        return Reader.read

    assert asked("red", "blue", "red") == ("red", "blue") and asked("blue", "green", "red") == ("green",)
    assert asked("red", normalise=False) == ("red",), "what is not normalised is another embedding"
    assert asked("blue", "red") == ("blue", "red") and asked("red") == (), "four are more than three"


def test_embeddings_that_are_not_finite_are_never_kept(task, tmp_path):
    class Damaged(ColourModel):
        def embed_images(self, images):
            return super().embed_images(images) * np.nan

    with pytest.raises(RunFailure, match="not finite"):
        features.of_task(Damaged(), task, cache=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/*.npz"))
