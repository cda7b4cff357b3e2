"""Records to batches: what a row holds, and that order, crops and captions depend on the seed and the place alone."""

import hashlib
import io
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import have_ended, is_running

from agriclip_jax.data import pipeline, tokenizers
from agriclip_jax.data.captions import class_identity, normalise_caption
from agriclip_jax.data.records import Alive, DatasetRecord, Example, write
from agriclip_jax.data.selection import Selection, select
from agriclip_jax.data.views import ViewSpec, crops, decode
from agriclip_jax.errors import UserError

COUNT, LENGTH = 20, 16
CLASSES = {slug: {"rust": "rust", "cow": "holstein cow"} for slug in ("coffee", "maize")}
VIEWS = {
    "global": ViewSpec(count=2, size=16, jitter=(0.4, 0.4, 0.2, 0.1), grayscale=0.2, blur=(1.0, 0.1)),
    "local": ViewSpec(count=3, size=8, scale=(0.1, 0.4)),
}
FIELDS = frozenset({"image/global", "image/local", "tokens", "caption_id", "class_id"})

KEEPS_WORKERS = """
import multiprocessing, sys, time
from agriclip_jax.data import pipeline, tokenizers
from agriclip_jax.data.records import Alive
from agriclip_jax.data.selection import select

if __name__ == "__main__":
    alive = Alive.open(sys.argv[1])
    batches = pipeline.train_batches(
        select(alive, "train"), tokenizer=tokenizers.train(["a cow"], 600), context_length=8, views={},
        needs=frozenset({"tokens"}), caption_kinds=("template",), batch_size=4, seed=0, threads=0, workers=2,
    )
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def photo(index):
    """A photo whose brightness tells its index."""
    pixels = np.full((24, 32, 3), 10 * index + 20) + np.random.default_rng(index).integers(-3, 4, (24, 32, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def example(index, image=None):
    dataset, key = ("coffee", "maize")[index % 2], ("rust", "cow")[index // 2 % 2]
    texts = (f"a photo of {dataset} with {key}, number {index}.", f"{key} on {dataset}", f"{dataset} {key}!")
    source = f"{dataset}/{key}/{index}.png"
    image = photo(index) if image is None else image
    return Example(image, texts, ("template",) * 3, CLASSES[dataset][key], key, dataset, "crop", source)


def folder(path, examples):
    records = {slug: DatasetRecord("crop", classes) for slug, classes in CLASSES.items()}
    write(path, {"train": lambda: iter(examples)}, name="small", description="For a test.", datasets=records)
    return Alive.open(path)


@pytest.fixture(scope="module")
def alive(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("pipeline") / "alive", [example(i) for i in range(COUNT)])


@pytest.fixture(scope="module")
def tokenizer(alive):
    return tokenizers.train(pipeline.captions(alive.source("train"), ("template",)), 600)


@pytest.fixture(scope="module")
def batches(alive, tokenizer):
    """`train_batches` on the small folder, other arguments by name."""

    def build(source=alive, **changed):
        arguments = dict(
            tokenizer=tokenizer,
            context_length=LENGTH,
            views=VIEWS,
            needs=FIELDS,
            caption_kinds=("template",),
            batch_size=8,
            seed=5,
            threads=1,
        )
        chosen = source if isinstance(source, Selection) else select(source, "train")
        return pipeline.train_batches(chosen, **(arguments | changed))

    return build


def take(iterator, count):
    rows = list(itertools.islice(iterator, count))
    iterator.close()
    return rows


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[field], other[field]) for field in one)


def row_set(*parts):
    """The rows of one batch that came in parts, whatever their order."""
    return sorted(
        hashlib.sha256(b"".join(part[field][row].tobytes() for field in sorted(part))).hexdigest()
        for part in parts
        for row in range(len(part["tokens"]))
    )


def which(batch):
    """The index of each row's photo, told by its brightness."""
    return np.rint((batch["image/global"][:, 0].mean((1, 2, 3)) - 20) / 10).astype(int).tolist()


PLAIN = {"views": {"global": ViewSpec(count=1, size=16)}, "needs": frozenset({"image/global"})}


# Rows


def test_a_batch_holds_the_needed_fields(batches):
    (batch,) = take(batches(), 1)
    shapes = {field: (values.shape, values.dtype) for field, values in batch.items()}
    assert shapes == {
        "image/global": ((8, 2, 16, 16, 3), np.uint8),
        "image/local": ((8, 3, 8, 8, 3), np.uint8),
        "tokens": ((8, LENGTH), np.int32),
        "caption_id": ((8, 2), np.uint32),
        "class_id": ((8, 2), np.uint32),
    }
    assert all(values.flags.c_contiguous for values in batch.values())


def test_a_row_speaks_of_one_example_and_identities_join_what_is_the_same(batches, tokenizer):
    """The caption drawn is one of the photo's; "rust" is bare and belongs to its crop, a cow is a cow."""
    captions, identities = {}, {}
    for batch in take(batches(**PLAIN | {"needs": FIELDS - {"image/local"}}), 15):
        for row, index in enumerate(which(batch)):
            about = example(index)
            rows = tokenizer.encode(about.captions, LENGTH)
            (drawn,) = np.flatnonzero((rows == batch["tokens"][row]).all(1))
            captions.setdefault(normalise_caption(about.captions[drawn]), set()).add(tuple(batch["caption_id"][row]))
            identities.setdefault(class_identity(about.class_name, about.dataset), set()).add(
                tuple(batch["class_id"][row])
            )
    assert all(len(ids) == 1 for ids in (*captions.values(), *identities.values()))
    assert len(set.union(*captions.values())) == len(captions) > 20
    assert (
        set(identities) == {"coffee: rust", "maize: rust", "holstein cow"} and len(set.union(*identities.values())) == 3
    )


def test_captions_are_drawn_evenly(batches, tokenizer):
    short = tokenizer.encode([text for i in range(4) for text in example(i).captions[1:]], LENGTH)
    kinds = {tuple(row): 1 + number % 2 for number, row in enumerate(short.tolist())}
    tokens = np.concatenate([batch["tokens"] for batch in take(batches(needs=frozenset({"tokens"})), 75)])
    drawn = np.bincount([kinds.get(tuple(row), 0) for row in tokens.tolist()])
    assert drawn.sum() == 600 and np.abs(drawn - 200).max() < 45  # four standard deviations


def test_every_example_comes_once_an_epoch_in_an_order_drawn_anew(batches):
    seen = [index for batch in take(batches(**PLAIN, batch_size=5), 8) for index in which(batch)]
    first, second = seen[:COUNT], seen[COUNT:]
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second and first != list(range(COUNT))


def test_the_same_photo_looks_different_in_the_next_epoch(batches):
    one, two = take(batches(batch_size=COUNT), 2)
    order = np.argsort(which(one)), np.argsort(which(two))
    assert all((one["image/global"][i] != two["image/global"][j]).any() for i, j in zip(*order, strict=True))


def test_fields_that_are_not_needed_are_not_made(batches, tmp_path):
    broken = folder(tmp_path / "broken", [example(i, b"not a photo") for i in range(4)])
    (batch,) = take(batches(broken, needs=frozenset({"tokens", "class_id"})), 1)
    assert set(batch) == {"tokens", "class_id"}


def test_a_view_is_the_same_whichever_follow_it(batches):
    both, alone = take(batches(), 1), take(batches(needs=frozenset({"image/global", "tokens"})), 1)
    for field in ("image/global", "tokens"):
        np.testing.assert_array_equal(both[0][field], alone[0][field])


def test_a_split_smaller_than_a_batch_is_repeated_within_it(batches):
    (batch,) = take(batches(**PLAIN, batch_size=2 * COUNT + 3), 1)
    assert sorted(set(which(batch))) == list(range(COUNT)) and len(which(batch)) == 2 * COUNT + 3


# Determinism


def test_a_seed_gives_its_batches_again_and_another_seed_others(batches):
    one, again, other = take(batches(), 4), take(batches(), 4), take(batches(seed=6), 4)
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert not any(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("threads", [0, 2, 5])
def test_the_number_of_threads_changes_nothing(batches, threads):
    assert all(same(a, b) for a, b in zip(take(batches(), 6), take(batches(threads=threads), 6), strict=True))


def test_workers_change_nothing_and_their_position_restores_any_other(batches):
    straight = take(batches(), 6)
    worked = batches(workers=2)
    assert all(same(next(worked), batch) for batch in straight[:3])
    state = worked.get_state()
    worked.close()
    after = batches()
    after.set_state(state)
    assert all(same(a, b) for a, b in zip(straight[3:], take(after, 3), strict=True))


def test_workers_end_with_the_program_even_when_it_is_killed(alive, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KEEPS_WORKERS, encoding="utf-8")
    with subprocess.Popen([sys.executable, script, alive.path], stdout=subprocess.PIPE, text=True) as program:
        numbers = [int(number) for number in program.stdout.readline().split()]
        assert len(numbers) == 2 and all(map(is_running, numbers))
        program.kill()
    assert have_ended(numbers), "a worker outlives its program"


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_hold_the_global_batch_of_one_one_after_another(batches, processes):
    whole = take(batches(), 4)
    parts = [take(batches(process_index=i, process_count=processes), 4) for i in range(processes)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert {len(share["tokens"]) for share in shares} == {8 // processes}
        assert same({field: np.concatenate([share[field] for share in shares]) for field in batch}, batch)


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_position_restores_what_followed_to_the_bit(batches, stop):
    straight = take(batches(), 8)
    first = batches(threads=2)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    next(first), next(first)  # what is read afterwards, or ahead, does not count
    first.close()
    second = batches(threads=1)
    next(second)
    second.set_state(state)
    assert second.get_state() == state
    assert all(same(a, b) for a, b in zip(straight[stop:], take(second, 8 - stop), strict=True))


def test_a_position_of_two_processes_restores_one_and_the_other_way_round(batches):
    whole = take(batches(), 6)
    pair = [batches(process_index=i, process_count=2) for i in range(2)]
    for _ in range(3):
        [next(part) for part in pair]
    one = batches()
    assert pair[0].get_state() == pair[1].get_state()
    one.set_state(pair[1].get_state())
    assert same(next(one), whole[3])
    for part in pair:
        part.set_state(one.get_state())
    assert row_set(*map(next, pair)) == row_set(whole[4])
    [iterator.close() for iterator in (*pair, one)]


# What goes wrong


def test_an_unreadable_photo_names_its_source(batches, tmp_path):
    broken = folder(tmp_path / "broken", [example(i, photo(i)[:99] if i == 3 else None) for i in range(4)])
    for makers in ({"threads": 0}, {"threads": 2}, {"workers": 2}):
        with pytest.raises(UserError, match=r"maize/cow/3\.png: broken image"):
            take(batches(broken, **makers), 3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch_size": 9, "process_count": 2}, "batch_size 9 .* 2 processes"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed -1"),
        ({"needs": frozenset({"image/locals"})}, "image/locals.*did you mean 'image/local'"),
    ],
)
def test_what_cannot_be_is_one_line(batches, wrong, words):
    with pytest.raises(UserError, match=words):
        batches(**wrong)


# Captions


def test_captions_are_distinct_and_the_cut_ones_counted(alive, tokenizer):
    captions = pipeline.captions(alive.source("train"), ("template",))
    assert len(captions) == len(set(captions)) == COUNT + 4 + 4
    assert tokenizer.truncated(captions, 64) == 0
    assert tokenizer.truncated(captions, 8) == COUNT  # "rust on coffee" fits, "a photo of ..." does not


def test_a_kind_is_drawn_first_and_then_one_of_its_captions(tmp_path, tokenizer):
    several = ("few words", "one sign", "another sign", "a third sign")
    kinds = ("template", "knowledge", "knowledge", "knowledge")
    alive = folder(tmp_path / "alive", [replace(example(0), captions=several, caption_kinds=kinds)])

    def drawn(*wanted, most=0):
        rows = pipeline.train_batches(
            select(alive, "train"),
            tokenizer=tokenizer,
            context_length=LENGTH,
            views={},
            needs=frozenset({"tokens"}),
            caption_kinds=wanted,
            captions_per_image=most,
            batch_size=400,
            seed=1,
            threads=0,
        )
        (batch,) = take(rows, 1)
        return Counter(tokenizer.decode(row) for row in batch["tokens"])

    assert set(drawn("template")) == {"few words"}
    assert set(drawn("knowledge")) == set(several[1:])
    assert set(drawn("taxonomy")) == set(several)  # it has none of them
    both = drawn("template", "knowledge")
    assert 160 < both["few words"] < 240 and set(both) == set(several)
    assert pipeline.captions(alive.source("train"), ("knowledge",)) == list(several[1:])
    assert [len(drawn("knowledge", most=most)) for most in (1, 2, 5)] == [1, 2, 3]
    assert drawn("knowledge", most=1) == drawn("knowledge", most=1)
    (name,) = drawn("name")
    assert not name.startswith(("a ", "an ")) and name in pipeline.captions(alive.source("train"), ("name",))


def test_the_one_caption_of_an_image_differs_among_those_of_a_class(tmp_path):
    several = tuple(f"sign {i}" for i in range(6))
    rows = [replace(example(i), captions=several, caption_kinds=("knowledge",) * 6) for i in range(12)]
    source = folder(tmp_path / "alive", rows).source("train")
    each = [pipeline.captions([row], ("knowledge",), 1) for row in source]
    assert {len(texts) for texts in each} == {1} and len({texts[0] for texts in each}) > 2


def test_a_crop_of_the_pipeline_is_a_crop_of_the_views(batches):
    """The pipeline adds nothing to `views`: a plain spec brings the stored pixels."""
    spec = ViewSpec(count=1, size=24, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=0.0)
    (batch,) = take(batches(views={"global": spec}, needs=frozenset({"image/global"})), 1)
    index = which(batch)[0]
    whole = crops(decode(photo(index)), np.random.default_rng(0), spec)
    np.testing.assert_array_equal(batch["image/global"][0], whole)


def test_an_image_without_a_label_is_a_class_of_its_own(tmp_path, batches):
    unlabelled = [replace(example(i), class_name="", class_key="", dataset="web") for i in range(6)]
    records = {"web": DatasetRecord("other", {"": ""})}
    write(tmp_path / "web", {"train": lambda: iter(unlabelled)}, name="web", description="x", datasets=records)
    batch = next(batches(Alive.open(tmp_path / "web"), batch_size=6))
    assert len({tuple(row) for row in batch["class_id"]}) == 6


def test_photos_in_order_come_once_each_as_evaluation_sees_them_for_any_number_of_processes(corpus):
    from agriclip_jax.data import in_order, views

    source = Alive.open(corpus).source("val")
    seen = {"small": views.EvalView(16), "squashed": views.EvalView(24, "squash")}
    whole = list(in_order.batches(source, seen, 32))
    weights = np.concatenate([batch["weight"] for batch in whole])
    assert weights.sum() == len(source) and not weights[len(source) :].any()
    for name, view in seen.items():
        wanted = np.stack([views.load_view(source[i]["image"], view) for i in range(len(source))])
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in whole])[: len(source)], wanted)
    halves = [list(in_order.batches(source, seen, 32, process_index=p, process_count=2)) for p in (0, 1)]
    for both, batch in zip(zip(*halves, strict=True), whole, strict=True):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[name] for half in both]), rows)
    later = next(in_order.batches(source, seen, 32, start=32))
    np.testing.assert_array_equal(later["small"], whole[1]["small"])
