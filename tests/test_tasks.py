"""Tasks from what a user typed: folders, archives, ALive folders, the embedded corpus."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import tiny
from colour_model import ColourModel, folder, photos

from agriclip_jax import runs
from agriclip_jax.data import captions, corpus, sources, splits
from agriclip_jax.data import survey as surveys
from agriclip_jax.data.records import Alive, write
from agriclip_jax.data.splits import split_of
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import zeroshot
from agriclip_jax.evaluate.tasks import from_alive, load_tasks, seen_datasets


@pytest.fixture
def fruit(tmp_path):
    return folder(tmp_path / "fruit", {"red_apple": photos("red", 12), "GreenApple": photos("green", 9)})


@pytest.fixture
def alive(tmp_path, fruit):
    folder(tmp_path / "sky", {"blue": photos("blue", 9)})
    survey = surveys.survey(sources.find([str(fruit), str(tmp_path / "sky")]))
    write(tmp_path / "alive", survey.splits(), name="alive", description="test", datasets=survey.datasets)
    return Alive.open(tmp_path / "alive")


def labels(task):
    return [photo.label for photo in task.photos()]


def test_a_folder_is_a_task_of_all_its_photos_in_imagefolders_class_order(fruit):
    (task,) = load_tasks(str(fruit))
    assert (task.name, task.group, task.domain, task.split) == ("fruit", "downstream", "other", "all")
    assert task.class_keys == ("GreenApple", "red_apple")
    assert task.class_names == ("Green Apple", "red apple")
    assert task.count == 21 and labels(task) == [0] * 9 + [1] * 12
    assert labels(task) == labels(task)  # it can be streamed again
    assert next(task.photos()).image == (fruit / "GreenApple" / "000.jpg").read_bytes()


def test_prompts_are_grammatical_and_come_from_the_domain_unless_the_user_gives_templates(fruit):
    (task,) = load_tasks(str(fruit))
    assert task.templates == captions.templates("other")
    assert task.prompts()[1][0] == "a photo of a red apple."
    (asked,) = load_tasks(str(fruit), templates=["a drawing of {}", "one {}"])
    assert asked.prompts()[0] == ["a drawing of a Green Apple", "one a Green Apple"]


def test_a_bare_condition_gets_the_words_of_its_dataset(tmp_path):
    path = folder(tmp_path / "banana_leaf", {"healthy": photos("green", 1), "rust": photos("red", 1)})
    (task,) = load_tasks(str(path), templates=["{}"])
    assert task.class_names == ("healthy", "rust")
    assert task.prompts() == [["a healthy banana leaf"], ["a banana leaf with rust"]]


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_is_the_same_task_as_its_folder(tmp_path, fruit, kind):
    archive = shutil.make_archive(str(tmp_path / "fruit_archive"), kind, fruit)
    (packed,), (plain,) = load_tasks(archive), load_tasks(str(fruit))
    assert packed.name == "fruit_archive"
    assert sorted((p.label, p.image) for p in packed.photos()) == sorted((p.label, p.image) for p in plain.photos())
    assert packed.class_names == plain.class_names


def test_metadata_gives_names_domain_and_templates(tmp_path, fruit):
    record = {
        "name": "fruit",
        "domain": "fruit",
        "classes": {"red_apple": "ripe apple", "GreenApple": "unripe apple"},
        "templates": ["a stall with {}"],
    }
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"name": "other"}, record]), encoding="utf-8")
    (task,) = load_tasks(str(fruit), meta=listed)
    assert (task.domain, task.class_names) == ("fruit", ("unripe apple", "ripe apple"))
    assert task.prompts()[0] == ["a stall with an unripe apple"]
    (fruit / "dataset.json").write_text(json.dumps(record), encoding="utf-8")
    (inside,) = load_tasks(str(fruit))
    assert inside.class_names == task.class_names and inside.count == 21


def test_a_split_is_the_hash_rule(fruit):
    (task,) = load_tasks(str(fruit), split="test")
    found = {photo.source for photo in task.photos()}
    files = [path.relative_to(fruit.parent).as_posix() for path in fruit.glob("*/*.jpg")]
    assert found == {file for file in files if split_of(*file.split("/")) == "test"}
    assert task.split == "test" and task.count == len(found) and 0 < task.count < 21
    parts = [load_tasks(str(fruit), split=split)[0].count for split in ("train", "val", "test")]
    assert sum(parts) == 21


def test_of_a_dataset_the_model_was_trained_on_only_the_test_split_is_asked(fruit):
    said = []
    (task,) = load_tasks(str(fruit), seen={"fruit": splits.SHARES}, say=said.append)
    assert (task.group, task.split) == ("in-domain", "test")
    assert any("only the test split" in line and line.endswith(": fruit") for line in said)
    (everything,) = load_tasks(str(fruit), seen={"fruit": splits.SHARES}, split="all")
    assert (everything.group, everything.count) == ("in-domain", 21)


@pytest.mark.parametrize("shares", ["train:90,val:5,test:5", "train:40,val:20,test:40"])
def test_of_photos_split_by_other_shares_none_is_asked_that_was_trained_on(tmp_path, shares):
    photos_ = folder(tmp_path / "fruit", {"red_apple": photos("red", 60), "GreenApple": photos("green", 60)})
    survey = surveys.survey(sources.find([str(photos_)]), ratios=splits.parse_ratios(shares))
    write(tmp_path / "alive", survey.splits(), name="alive", description="test", datasets=survey.datasets)
    trained_on = Alive.open(tmp_path / "alive")
    known, _ = runs.what_was_seen(tiny.config(), trained_on, None, {})
    (task,) = load_tasks(str(photos_), seen=seen_datasets(known))
    (test,) = from_alive(trained_on, "test")
    assert sorted(photo.source for photo in task.photos()) == sorted(photo.source for photo in test.photos())
    assert 0 < task.count == trained_on.splits["test"] < 120


def test_of_models_that_were_split_otherwise_the_photos_are_asked_that_none_has_seen():
    one, other = ([{"dataset": "fruit", "shares": s}] for s in ("train:90,val:5,test:5", "train:40,val:20,test:40"))
    assert seen_datasets(one, other) == {"fruit": "train:90,val:5,test:5"}
    assert seen_datasets([{"dataset": "sky"}]) == {"sky": splits.SHARES}  # of a run that does not say


def test_an_alive_folder_is_one_task_for_each_dataset(alive):
    fruit, sky = load_tasks(str(alive.path))
    assert [fruit.name, sky.name, fruit.split] == ["fruit", "sky", "test"]
    assert fruit.class_keys == ("GreenApple", "red_apple") and set(labels(fruit)) <= {0, 1}
    assert set(labels(sky)) == {0}, "labels count from the dataset's own first class"
    assert fruit.count + sky.count == alive.splits["test"]
    (asked, _), (folder_, _) = (
        load_tasks(str(alive.path)),
        (*load_tasks(str(alive.path.parent / "fruit"), split="test"), 0),
    )
    assert [p.image for p in asked.photos()] == [p.image for p in folder_.photos()]
    everything = load_tasks(str(alive.path), split="all")
    assert sum(task.count for task in everything) == sum(alive.splits.values()) == 30


def test_images_without_a_label_are_in_no_task(tmp_path, fruit):
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name if n % 3 else ''},a fruit"
        for n, path in enumerate(sorted(fruit.rglob("*.jpg")))
    ]
    (tmp_path / "web.csv").write_text("\n".join(["filepath,label,caption", *rows]), encoding="utf-8")
    (tmp_path / "plain.csv").write_text(
        "\n".join(["filepath,caption", "fruit/red_apple/000.jpg,an apple"]), encoding="utf-8"
    )
    survey = surveys.survey(
        sources.find([str(tmp_path / "web.csv"), str(tmp_path / "plain.csv")]), ratios={"train": 100}
    )
    write(tmp_path / "alive", survey.splits(), name="alive", description="test", datasets=survey.datasets)
    (task,) = from_alive(Alive.open(tmp_path / "alive"), "train")
    assert task.class_keys == ("GreenApple", "red_apple") and task.count == 14
    assert all(photo.source.split("/")[2] == task.class_keys[photo.label] for photo in task.photos())


def test_a_runs_own_alive_folder_is_in_domain_and_any_other_downstream(alive):
    assert {task.group for task in from_alive(alive, "test")} == {"in-domain"}
    assert [task.group for task in load_tasks(str(alive.path), seen={"sky": splits.SHARES})] == [
        "downstream",
        "in-domain",
    ]


def test_paths_are_parted_by_commas_and_a_folder_of_archives_is_many(tmp_path, fruit):
    for name in ("a", "b"):
        shutil.make_archive(str(tmp_path / "packed" / name), "zip", fruit)
    assert [task.name for task in load_tasks(f"{fruit}, {tmp_path / 'packed'}")] == ["fruit", "a", "b"]


def test_the_embedded_corpus_holds_unseen_combinations_apart(tmp_path, monkeypatch):
    small = corpus.ensure(tmp_path, size=16, count={"train": 1, "test": 1})
    monkeypatch.setattr(corpus, "ensure", lambda: small)
    tasks = load_tasks("embedded")
    assert len(tasks) >= 6 and all(task.count == len(task.class_keys) for task in tasks)
    groups = {task.name: task.group for task in tasks}
    assert groups.pop(corpus.UNSEEN) == "embedded, unseen combinations"
    assert set(groups.values()) == {"embedded"}


def test_a_broken_photo_is_named_in_its_split_only(tmp_path):
    path = folder(tmp_path / "x", {"red": [*photos("red", 5), b"broken"], "green": photos("green", 5)})
    (everything,) = load_tasks(str(path))
    assert [source for source, _ in everything.unreadable] == ["x/red/005.jpg"] and everything.count == 10
    own = split_of("x", "red", "005.jpg")
    named = {split: load_tasks(str(path), split=split)[0].unreadable for split in ("train", "val", "test")}
    assert [split for split, found in named.items() if found] == [own]


def test_notes_tell_what_was_guessed(fruit):
    said = []
    load_tasks(str(fruit), say=said.append)
    assert any("no metadata" in line for line in said)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("{}/fruut", {}, "--tasks=.*fruut: no such file or folder; did you mean 'fruit'?"),
        ("{}/fruit/red_apple/000.jpg", {}, "--tasks=.* is no folder, archive"),
        ("{}/empty", {}, "no photo to keep"),
        (" , ", {}, "names nothing"),
        ("{}/fruit", {"split": "tset"}, "--split=tset: unknown split; did you mean 'test'"),
        ("{}/fruit", {"templates": ["a photo"]}, "--template='a photo' needs one {}"),
        ("{}/fruit", {"meta": "missing.json"}, "cannot read the metadata missing.json"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, fruit, spec, options, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as error:
        load_tasks(spec.format(tmp_path), **options)
    assert "\n" not in str(error.value) and "--source" not in str(error.value)


def test_a_task_is_asked_once(fruit, alive):
    for spec in (f"{fruit},{fruit}", f"{fruit}, {alive.path}"):
        with pytest.raises(UserError, match="asks 'fruit' twice; give it once, or rename a folder"):
            load_tasks(spec)


def test_a_split_that_an_alive_folder_lacks_is_named(alive):
    with pytest.raises(UserError, match="unknown split"):
        load_tasks(str(alive.path), split="holdout")
    with pytest.raises(UserError, match="has no split"):
        from_alive(alive, "holdout")


def test_an_archive_that_climbs_out_is_refused(tmp_path, fruit):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.add(fruit / "red_apple" / "000.jpg", "../red/000.jpg")
    with pytest.raises(UserError, match="climbs out"):
        load_tasks(str(tmp_path / "bad.tar"))


@pytest.mark.skipif("AGRICLIP_PHOTOS" not in os.environ, reason="real photos: set AGRICLIP_PHOTOS to their folder")
def test_real_archives_with_their_list_of_metadata():
    photos_ = Path(os.environ["AGRICLIP_PHOTOS"])
    listed = {record["name"]: record for record in json.loads((photos_ / "datasets.json").read_text(encoding="utf-8"))}
    spec = f"{photos_ / 'downstream' / 'chicken_feces.zip'},{photos_ / 'train' / 'weizmann_horse.zip'}"
    hens, horses = load_tasks(spec, meta=photos_ / "datasets.json", seen={"weizmann_horse": splits.SHARES})
    record = listed["chicken_feces"]
    assert hens.count == sum(record["counts"].values()) and hens.domain == record["domain"]
    assert dict(zip(hens.class_keys, hens.class_names, strict=True)) == record["classes"]
    assert horses.group == "in-domain" and horses.split == "test" and len(horses.class_keys) == 1


def test_a_task_from_each_kind_of_source_can_be_scored(tmp_path, fruit, alive):
    archive = shutil.make_archive(str(tmp_path / "apples"), "zip", fruit)
    tasks = [task for spec in (f"{fruit},{archive}", str(alive.path)) for task in load_tasks(spec)]
    results = zeroshot.evaluate(ColourModel(), tasks)
    tops = {(r.task.name, r.task.split): r.metrics.top1 if r.metrics else None for r in results}
    assert tops == {("fruit", "all"): 1, ("apples", "all"): 1, ("fruit", "test"): 1, ("sky", "test"): None}


# ---- task files, ranks, prompts, captions ----------------------------------------------------------------------------

TASK = """
name: apple_colours
title: Apples by colour
domain: fruit
classes: {red_apple: ripe apple, GreenApple: unripe apple}
templates: ["a stall with {}"]
paper_templates: ["a photo contain {}"]
prompts: {red_apple: ["a red fruit", "a ripe one"], GreenApple: ["a green fruit"]}
hierarchy: {taste: {sweet: [red_apple], sour: [GreenApple]}}
split: all
images: 21
"""


@pytest.fixture
def colours(tmp_path):
    (tmp_path / "apple_colours.yaml").write_text(TASK, encoding="utf-8")
    return tmp_path / "apple_colours.yaml"


def test_a_task_file_gives_names_prompts_and_ranks(fruit, colours):
    (task,) = load_tasks(f"{colours}={fruit}")
    assert (task.name, task.domain, task.spec) == ("apple_colours", "fruit", f"{colours}={fruit}")
    assert task.class_keys == ("GreenApple", "red_apple") and task.class_names == ("unripe apple", "ripe apple")
    kinds = task.prompt_kinds()
    assert kinds["ensemble"] == [["a stall with an unripe apple"], ["a stall with a ripe apple"]]
    assert kinds["per class"] == [["a green fruit"], ["a red fruit", "a ripe one"]]
    assert task.prompts() == kinds["per class"], "whole prompts come before templates"
    assert kinds["paper"] == [["a photo contain GreenApple"], ["a photo contain red_apple"]]
    assert not task.mismatch and task.at("test").class_names == task.class_names


def test_a_task_file_in_the_folder_is_found_by_itself(fruit, colours):
    (fruit / "task.yaml").write_text(TASK, encoding="utf-8")
    (task,) = load_tasks(str(fruit))
    assert task.name == "apple_colours" and task.own_prompts and task.count == 21


def test_a_folder_whose_classes_differ_from_the_task_file_is_told_and_not_scored(fruit, colours):
    (fruit / "red_apple").rename(fruit / "pear")
    (task,) = load_tasks(f"{colours}={fruit}")
    (result,) = zeroshot.evaluate(ColourModel(), [task])
    assert result.metrics is None
    assert "'red_apple'" in result.reason and "missing" in result.reason and "'pear'" in result.reason


def test_other_counts_than_the_originals_are_said_and_scored(fruit, colours):
    (fruit / "red_apple" / "000.jpg").unlink()
    said = []
    (task,) = load_tasks(f"{colours}={fruit}", say=said.append)
    assert any("20 photos, where the original has 21" in line for line in said) and not task.mismatch


def test_prompts_of_the_original_that_the_photos_do_not_tell_are_left_out_and_said(fruit, colours):
    text = TASK.replace("paper_templates", 'paper_names: "{common_name} {genus}"\npaper_templates')
    colours.write_text(text, encoding="utf-8")
    said = []
    (task,) = load_tasks(f"{colours}={fruit}", say=said.append)
    assert not task.paper_prompts and any("not asked by the original's prompts" in line for line in said)
    lineage = {key: {"common_name": key, "genus": "Malus"} for key in ("red_apple", "GreenApple")}
    (fruit / "dataset.json").write_text(json.dumps({"name": "fruit", "taxonomy": lineage}), encoding="utf-8")
    (task,) = load_tasks(f"{colours}={fruit}")
    assert task.paper_prompts[1] == ("a photo contain red_apple Malus",)


def test_an_unknown_task_name_is_one_line_with_the_nearest(fruit):
    with pytest.raises(UserError, match="no task 'deep_weed' is known; did you mean 'deep_weeds'"):
        load_tasks(f"deep_weed={fruit}")


def benchmark(folder_, **splits):
    """A folder of CLIP_benchmark: split -> (colour, label) of its photos."""
    folder_.mkdir()
    (folder_ / "classnames.txt").write_text("red apple\ngreen apple\nblue apple\n")
    (folder_ / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    for split, photos_ in splits.items():
        (folder_ / split).mkdir()
        (folder_ / split / "nshards.txt").write_text("1")
        with tarfile.open(folder_ / split / "0.tar", "w") as tar:
            for number, (colour, label) in enumerate(photos_):
                for ending, data in ((".jpg", photos(colour, 1)[0]), (".cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{number:03}{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder_


@pytest.mark.parametrize(("named", "taken"), [("val", "val"), ("train", "test"), ("all", "test"), ("", "test")])
def test_the_split_of_a_task_file_is_asked_where_the_photos_still_have_the_originals_splits(
    tmp_path, fruit, named, taken
):
    folder_ = benchmark(tmp_path / "wds_fruit", test=[("red", 0)], val=[("red", 0), ("green", 1)])
    asked = tmp_path / "apples.yaml"
    asked.write_text(f"name: apples\ntitle: Apples\ndomain: fruit\nsplit: {named or repr('')}\n", encoding="utf-8")
    (task,) = load_tasks(f"{asked}={folder_}")
    assert (task.name, task.split, task.count) == ("apples", taken, {"val": 2, "test": 1}[taken])
    (told,) = load_tasks(f"{asked}={folder_}", split="test")
    assert told.split == "test", "who gives a split has it"
    (whole,) = load_tasks(f"{asked}={fruit}")
    assert whole.split == "all", "by hash there are only splits of our own"


def test_a_folder_of_clip_benchmark_is_read_as_it_is(tmp_path):
    folder_ = benchmark(tmp_path / "wds_fruit", test=[("red", 0), ("green", 1), ("red", 0)])
    (task,) = load_tasks(str(folder_))
    assert task.class_names == ("red apple", "green apple", "blue apple"), "also one without a photo"
    assert task.prompts()[1] == ["a photo of a green apple.", "the green apple"] and labels(task) == [0, 1, 0]
    (result,) = zeroshot.evaluate(ColourModel(), [task])
    assert result.metrics.top1 == 1 and result.metrics.chance == 1 / 3
    with pytest.raises(UserError, match="has no split 'train'; it has: test"):
        load_tasks(str(folder_), split="train")


def test_healthy_and_sick_are_a_rank_and_so_are_those_of_a_lineage(tmp_path):
    classes = {"healthy": photos("green", 1), "rust": photos("red", 1), "blight": photos("blue", 1)}
    path = folder(tmp_path / "bean_leaf", classes)
    (task,) = load_tasks(str(path))
    assert task.ranks == {"health": ("sick", "healthy", "sick")}
    lineage = {
        "rust": ("Rosa", "Rosa canina"),
        "blight": ("Rosa", "Rosa rugosa"),
        "healthy": ("Malus", "Malus domestica"),
    }
    record = {
        "name": "bean_leaf",
        "taxonomy": {key: {"genus": genus, "species": species} for key, (genus, species) in lineage.items()},
    }
    (path / "dataset.json").write_text(json.dumps(record), encoding="utf-8")
    (task,) = load_tasks(str(path))
    assert task.ranks["genus"] == ("Rosa", "Malus", "Rosa") and "species" not in task.ranks


def test_descriptions_come_from_the_table_of_facts_where_it_knows_a_class(tmp_path):
    path = folder(tmp_path / "coffee_leaf", {"rust": photos("red", 1), "zzz": photos("green", 1)})
    (task,) = load_tasks(str(path))
    kinds = task.prompt_kinds()
    assert (
        all("showing" in text for text in kinds["descriptions"][0]) and kinds["descriptions"][1] == kinds["ensemble"][1]
    )
    assert [texts[0] for texts in kinds["ensemble"]] == [text for (text,) in kinds["single"]]


def test_photos_without_a_label_are_part_of_a_task_only_when_asked_for(tmp_path, fruit):
    rows = [f"fruit/red_apple/{n:03}.jpg,{'red' if n % 2 else ''},no {n}" for n in range(6)]
    (tmp_path / "web.csv").write_text("\n".join(["filepath,label,caption", *rows]), encoding="utf-8")
    (plain,) = load_tasks(str(tmp_path / "web.csv"))
    (whole,) = load_tasks(str(tmp_path / "web.csv"), unlabelled=True)
    assert plain.count == 3 and whole.count == 6 and plain.fingerprint != whole.fingerprint
    assert sorted(labels(whole)) == [-1] * 3 + [0] * 3
    assert sorted(photo.captions for photo in whole.photos()) == [(f"no {n}",) for n in range(6)]


def test_the_same_question_can_be_asked_of_another_split(fruit, alive):
    for task in (load_tasks(str(fruit))[0], load_tasks(str(alive.path))[0]):
        parts = [task.at(split) for split in ("train", "val", "test")]
        assert [part.split for part in parts] == ["train", "val", "test"]
        assert sum(part.count for part in parts) == 21 and {part.name for part in parts} == {"fruit"}
