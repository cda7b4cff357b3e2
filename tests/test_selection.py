"""Which examples training sees, and in which streams they come: with captions, without, and replayed."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import photo, same, take, which

from agriclip_jax.data import pipeline, tokenizers
from agriclip_jax.data.keywords import Keywords
from agriclip_jax.data.records import Alive, DatasetRecord, Example, write
from agriclip_jax.data.selection import select
from agriclip_jax.data.views import ViewSpec
from agriclip_jax.errors import UserError

COUNT = 20
DOMAINS = {"leaves": "crop", "thistles": "weed", "carps": "fish"}
PAIRED = frozenset({"image/global", "tokens", "caption_id", "class_id"})
BOTH = PAIRED | {"unpaired/image/global"}


def example(index, slug=None):
    slug = slug or ("leaves", "thistles")[index % 2]
    texts = (f"{slug} number {index}.", f"a photo of {slug}, {index}")
    return Example(
        photo(index), texts, ("template",) * 2, slug, slug, slug, DOMAINS[slug], f"{slug}/{slug}/{index}.png"
    )


def folder(path, examples):
    records = {slug: DatasetRecord(domain, {slug: slug}) for slug, domain in DOMAINS.items()}
    write(path, {"train": lambda: iter(examples)}, name="small", description="For a test.", datasets=records)
    return Alive.open(path)


@pytest.fixture(scope="module")
def alive(tmp_path_factory):
    """Twenty photos told apart by their brightness; the even ones are crops, the odd ones weeds."""
    return folder(tmp_path_factory.mktemp("selection") / "alive", [example(i) for i in range(COUNT)])


@pytest.fixture(scope="module")
def carps(tmp_path_factory):
    """A folder of others: photos 20 to 22."""
    return folder(tmp_path_factory.mktemp("general") / "alive", [example(20 + i, "carps") for i in range(3)])


def indices(examples):
    return [int(one["source"].split("/")[-1].removesuffix(".png")) for one in examples]


@pytest.fixture(scope="module")
def batches(alive):
    def build(chosen=None, **changed):
        arguments = dict(
            tokenizer=tokenizers.train(["leaves and thistles"], 600),
            context_length=12,
            views={"global": ViewSpec(count=2, size=16)},
            needs=BOTH,
            caption_kinds=("template",),
            batch_size=4,
            unpaired_batch=8,
            seed=5,
            threads=1,
        )
        chosen = chosen or select(alive, "train", label_ratio=0.3)
        return pipeline.train_batches(chosen, **(arguments | changed))

    return build


def unpaired(batch):
    """The index of each unpaired row's photo."""
    return which({"image/global": batch["unpaired/image/global"]})


# Selection


def test_all_examples_are_paired_where_nothing_is_asked(alive):
    chosen = select(alive, "train")
    assert indices(chosen.paired) == list(range(COUNT)) and not len(chosen.unpaired) and not len(chosen.general)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 2**32 - 1))
def test_the_pairs_of_a_smaller_ratio_lie_within_those_of_a_larger_one(alive, one, other, seed):
    small, large = (select(alive, "train", label_ratio=ratio, label_seed=seed) for ratio in sorted([one, other]))
    few, many = indices(small.paired), indices(large.paired)
    assert set(few) <= set(many) and few == sorted(few)
    for chosen, ratio in ((small, min(one, other)), (large, max(one, other))):
        assert len(chosen.paired) == max(1, round(ratio * COUNT))
        assert sorted(indices(chosen.paired) + indices(chosen.unpaired)) == list(range(COUNT))


def test_another_label_seed_pairs_others(alive):
    draws = {tuple(indices(select(alive, "train", label_ratio=0.5, label_seed=seed).paired)) for seed in range(9)}
    assert len(draws) > 5


def test_domains_keep_their_examples_and_the_ratio_is_of_those(alive):
    chosen = select(alive, "train", domains=("weed",), label_ratio=0.2)
    assert len(chosen.paired) == 2
    assert sorted(indices(chosen.paired) + indices(chosen.unpaired)) == list(range(1, COUNT, 2))


def test_what_the_domains_leave_out_can_be_replayed_and_so_can_another_folder(alive, carps):
    of_same = select(alive, "train", domains=("weed",), label_ratio=0.5, general=Alive.open(alive.path))
    assert indices(of_same.general) == list(range(0, COUNT, 2))
    of_other = select(alive, "train", general=carps, general_domains=("fish",))
    assert indices(of_other.general) == [20, 21, 22]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"domains": ("weeds",)}, r"config.data.domains: .* has no domain 'weeds'; did you mean 'weed'\?"),
        ({"domains": ("fish",)}, r"config.data.domains=\('fish',\): .* has no example of them in 'train'"),
        ({"general_domains": ("crops",)}, r"config.data.replay.domains: .* 'crops'; did you mean 'crop'\?"),
        ({}, r"config.data.replay: there is nothing to replay, .* name another folder by config.data.replay.path"),
        ({"domains": ("crop",), "general_domains": ("crop",)}, r"nothing to replay"),
        ({"domains": ("crop",), "general_domains": ("fish",)}, r"nothing to replay"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(alive, options, words):
    with pytest.raises(UserError, match=words) as error:
        select(alive, "train", general=alive, **options)
    assert "\n" not in str(error.value)


def test_training_may_draw_no_caption_of_an_unpaired_example(alive, carps):
    chosen = select(alive, "train", label_ratio=0.3, general=carps)
    captions = pipeline.captions(chosen.captioned(), ("template",))
    assert captions == [text for i in indices(chosen.paired) for text in example(i).captions] + [
        text for i in (20, 21, 22) for text in example(i, "carps").captions
    ]


# Streams


def test_each_stream_holds_its_own_examples_each_once_an_epoch(alive, batches):
    chosen = select(alive, "train", label_ratio=0.3)
    drawn = take(batches(), 7)
    assert {field: rows.shape[0] for field, rows in drawn[0].items()} == dict.fromkeys(PAIRED, 4) | {
        "unpaired/image/global": 8
    }
    with_captions = [i for batch in drawn for i in which(batch)]
    without = [i for batch in drawn for i in unpaired(batch)]
    for seen, epoch in ((with_captions, indices(chosen.paired)), (without, indices(chosen.unpaired))):
        for start in range(0, len(seen) - len(epoch) + 1, len(epoch)):
            assert sorted(seen[start : start + len(epoch)]) == epoch
    assert with_captions[:6] != with_captions[6:12]


def test_streams_of_as_many_examples_are_shuffled_apart(alive, batches):
    chosen = select(alive, "train", label_ratio=0.5)
    (batch,) = take(batches(chosen, batch_size=10, unpaired_batch=10), 1)
    places = [indices(part).index for part in (chosen.paired, chosen.unpaired)]
    assert [places[0](i) for i in which(batch)] != [places[1](i) for i in unpaired(batch)]


def test_the_unpaired_stream_changes_nothing_of_the_paired_one(batches):
    both, alone = take(batches(), 5), take(batches(needs=PAIRED, unpaired_batch=0), 5)
    for one, other in zip(both, alone, strict=True):
        assert same({field: one[field] for field in other}, other)


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_position_restores_both_streams_to_the_bit(batches, stop):
    straight = take(batches(), 8)
    first = batches(threads=3)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    take(first, 2)
    second = batches()
    next(second)
    second.set_state(state)
    assert all(same(a, b) for a, b in zip(straight[stop:], take(second, 8 - stop), strict=True))


def test_the_position_of_a_run_without_unpaired_rows_is_no_position_of_one_with(batches):
    alone = batches(needs=PAIRED, unpaired_batch=0)
    next(alone)
    with pytest.raises(UserError, match=r"the saved position in the data is damaged"):
        batches().set_state(alone.get_state())


def test_workers_change_nothing_of_either_stream(batches):
    assert all(same(a, b) for a, b in zip(take(batches(), 3), take(batches(workers=2), 3), strict=True))


def test_processes_hold_the_global_batch_of_both_streams_one_after_another(batches):
    whole = take(batches(), 4)
    parts = [take(batches(process_index=i, process_count=4), 4) for i in range(4)]
    for step, batch in enumerate(whole):
        assert same({field: np.concatenate([part[step][field] for part in parts]) for field in batch}, batch)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"unpaired_batch": 0}, r"config.data.unpaired_batch=0, and an objective learns from images without captions"),
        ({"needs": PAIRED}, r"config.data.unpaired_batch=8, and no objective learns from .* config.objectives.sclip"),
        ({"unpaired_batch": 6, "process_count": 4}, r"unpaired_batch 6 cannot be divided among 4 processes"),
        ({"needs": BOTH | {"unpaired/tokens"}}, r"an objective needs unpaired/tokens, which the pipeline cannot make"),
    ],
)
def test_a_stream_that_cannot_be_is_one_line(batches, wrong, words):
    with pytest.raises(UserError, match=words):
        batches(**wrong)


def test_without_an_unpaired_example_there_is_no_stream_of_them(alive, batches):
    with pytest.raises(UserError, match=r"no training image is without captions.*; lower config.data.label_ratio, or"):
        batches(select(alive, "train"))


# Replay


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([0.1, 0.25, 0.5, 0.8]), st.integers(0, 2**32 - 1))
def test_general_examples_take_their_share_of_the_rows_at_even_distances(alive, carps, batches, share, seed):
    chosen = select(alive, "train", general=carps)
    drawn = take(batches(chosen, needs=PAIRED, unpaired_batch=0, replay_share=share, seed=seed), 10)
    general = [i >= COUNT for batch in drawn for i in which(batch)]
    for count in (4, 10, 20, 40):
        assert abs(sum(general[:count]) - share * count) <= 1
    fish = [i for batch in drawn for i in which(batch) if i >= COUNT]
    assert all(set(fish[start : start + 3]) == {20, 21, 22} for start in range(0, len(fish) - 2, 3))


def test_replayed_rows_come_with_their_captions_and_classes(alive, carps, batches):
    chosen = select(alive, "train", label_ratio=0.5, general=carps)
    rows = batches(chosen, replay_share=0.5)
    ids, by_hand = {}, batches(select(carps, "train"), needs=PAIRED, unpaired_batch=0)
    for batch in take(by_hand, 4):
        ids |= {i: tuple(row) for i, row in zip(which(batch), batch["class_id"], strict=True)}
    for batch in take(rows, 4):
        seen = zip(which(batch), batch["class_id"], strict=True)
        assert {tuple(row) for i, row in seen if i >= COUNT} == set(ids.values())
        assert not set(unpaired(batch)) & set(indices(chosen.paired)) and max(unpaired(batch)) < COUNT


def test_a_replayed_stream_restores_and_is_the_same_for_any_number_of_processes(alive, carps, batches):
    chosen = select(alive, "train", label_ratio=0.5, general=carps)
    build = lambda **changed: batches(chosen, replay_share=0.3, **changed)  # noqa: E731
    straight, first = take(build(), 6), build()
    for _ in range(3):
        next(first)
    second = build()
    second.set_state(first.get_state())
    assert all(same(a, b) for a, b in zip(straight[3:], take(second, 3), strict=True))
    parts = [take(build(process_index=i, process_count=2), 2) for i in range(2)]
    for step in range(2):
        whole = {field: np.concatenate([part[step][field] for part in parts]) for field in straight[step]}
        assert same(whole, straight[step])
    first.close()


# Mentions


def test_a_row_says_which_keywords_the_caption_that_was_drawn_has(alive, batches):
    words = ("photo of leaves", "thistles", "number")
    rows = batches(needs=PAIRED | {"mentions"}, unpaired_batch=0, keywords=words, batch_size=8)
    tokenizer = tokenizers.train(["leaves and thistles"], 600)
    texts = {tuple(tokenizer.encode([text], 12)[0]): text for i in range(COUNT) for text in example(i).captions}
    seen = set()
    for batch in itertools.islice(rows, 4):
        assert batch["mentions"].shape == (8, 3) and batch["mentions"].dtype == bool
        for row, mentions in zip(batch["tokens"], batch["mentions"], strict=True):
            text = texts[tuple(row)]
            assert mentions.tolist() == ["photo of leaves" in text, "thistles" in text, "number" in text]
            np.testing.assert_array_equal(mentions, Keywords(words).mentioned(text))
            seen.add(tuple(mentions))
    rows.close()
    assert len(seen) == 4
