"""A task file says what a task is, photos that are not those of the task are told, and CLIP_benchmark's folders are
read as they are."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from colour_model import ColourModel, photo
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.data import catalogue, corpus
from agriclip_jax.data.survey import survey
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import statistics, taskfiles, zeroshot
from agriclip_jax.evaluate.taskfiles import (
    COLUMNS,
    MAX_BYTES,
    NAMED,
    benchmark_folder,
    class_prompts,
    find,
    images_note,
    mismatch,
    pairs,
    read,
    shipped,
    table,
)
from agriclip_jax.evaluate.tasks import Photo, Task

QUINOA = {
    "name": "quinoa_haze",
    "title": "Quinoa Haze",
    "domain": "crop",
    "classes": {"purple_haze": "quinoa leaf with purple haze", "healthy": "healthy quinoa leaf"},
}


def own(path, entry):
    path.write_text(yaml.safe_dump(entry, sort_keys=False), encoding="utf-8")
    return path


# ---- the tasks that are known ----------------------------------------------------------------------------------------


def test_every_file_loads_and_no_two_tasks_share_a_name():
    assert len(shipped()) == sum(len(yaml.safe_load(path.read_text("utf-8"))) for path in NAMED.glob("*.yaml")) > 40
    assert len({task.name for task in shipped()}) == len(shipped())


@pytest.mark.parametrize("task", shipped(), ids=lambda task: task.name)
def test_a_task_says_what_it_is_and_what_is_not_known_of_it(task):
    assert find(task.name) is task and task.title and task.domain in catalogue.DOMAINS
    assert task.citation and not ("\n" in task.citation or task.citation.endswith("."))
    assert all(t.count("{}") == 1 for t in (*task.templates, *task.paper_templates))
    assert task.classes_count == (len(set(task.classes.values())) or task.classes_count)
    assert bool(task.split) == bool(task.split_means) == ("split" not in task.unknown)
    assert (task.images is None) == ("images" in task.unknown)
    assert task.dataset or "source" in task.unknown
    if not task.classes and "class names" not in task.unknown:
        assert task.classes_count >= 400  # too many to list: they come with the photos
    for groups in task.hierarchy.values():
        assert groups.keys() == task.classes.keys()


@pytest.mark.parametrize("task", [task for task in shipped() if task.classes], ids=lambda task: task.name)
def test_the_classes_of_a_task_are_its_own_and_each_has_prompts_of_its_own(task):
    assert mismatch(task, task.classes, {}) == "" or len(task.classes) > len(set(task.classes.values()))
    prompts = {task.classes[key]: tuple(class_prompts(task, key)) for key in task.classes}
    assert len(set(prompts.values())) == len(prompts) == task.classes_count
    assert all("{" not in prompt for of_class in prompts.values() for prompt in of_class)


def test_seventeen_tasks_of_agriclip_are_known_and_what_it_does_not_state_is_not_made_up():
    tasks = [task for task in shipped() if task.name.startswith("agriclip_")]
    assert len(tasks) == 17
    assert [task.name for task in tasks if not task.paper_templates] == ["agriclip_fishnet"]
    assert {task.name for task in tasks if task.classes} == {
        f"agriclip_{name}"
        for name in ("banana_deficiency", "bean_lesion", "chicken_fecus", "citrus_leaves", "soybean_weeds")
    }
    assert all({"images", "split"} <= set(task.unknown) and not task.split for task in tasks)
    cows = find("agriclip_cow_breed")
    assert cows.classes_count == 3 and "class names" in cows.unknown and "90 classes" in cows.notes
    assert find("agriclip_acquarium_fish").paper_templates == ("a fish type of {} specie",)


def test_the_original_puts_the_names_of_folders_as_they_are():
    banana, soil = find("agriclip_banana_deficiency"), find("eurosat")
    assert class_prompts(banana, "healthy", paper=True) == ["a photo contain healthy deficiency"]
    assert class_prompts(banana, "healthy")[0] == "a photo of a healthy banana leaf."
    assert class_prompts(soil, "AnnualCrop", paper=True)[0] == "a remote sensing image of many annualcrop."
    assert class_prompts(find("resisc45"), "sea_ice", paper=True)[36] == "an aerial image of a sea ice."
    assert class_prompts(find("agriclip_fishnet"), "x", paper=True) == []


def test_georsclip_was_asked_with_three_nouns_in_thirty_five_patterns():
    (templates,) = {find(name).paper_templates for name in ("eurosat", "resisc45", "aid")}
    assert len(set(templates)) == len(templates) == 105
    nouns = ("remote sensing image", "aerial image", "satellite image")
    for noun, its in zip(nouns, (templates[:35], templates[35:70], templates[70:]), strict=True):
        assert all(noun in template for template in its)
        assert [its[n].replace(noun, "photo").replace("an photo", "a photo") for n in (0, 5, 17, 34)] == [
            "a photo of many {}.",
            "a low resolution photo of the {}.",
            "a black and white photo of the {}.",
            "a photo of a cool {}.",
        ]
    assert not any("a aerial" in template or "an remote" in template for template in templates)


def test_inaturalist_is_asked_with_names_that_come_with_the_photos():
    taxon = {
        "kingdom": "Plantae",
        "phylum": "Tracheophyta",
        "class": "Magnoliopsida",
        "order": "Asterales",
        "family": "Asteraceae",
        "genus": "Matricaria",
        "species": "Matricaria chamomilla",
        "common_name": "German Chamomile",
        "supercategory": "Plants",
    }
    short, long = find("i_naturalist2021"), find("i_naturalist2021_all_names")
    asked = class_prompts(short, "06000_x", paper=True, taxon=taxon)
    assert len(set(asked)) == 80 and asked[0] == "a bad photo of a German Chamomile Plants Matricaria."
    assert "itap of my German Chamomile Plants Matricaria." in asked
    assert class_prompts(long, "06000_x", paper=True, taxon=taxon)[0] == (
        "a bad photo of a German Chamomile Plants Plantae Tracheophyta Magnoliopsida Asterales Asteraceae Matricaria "
        "chamomilla."
    )
    nameless = {**taxon, "common_name": ""}  # then the table repeats the scientific name
    assert "Matricaria chamomilla Plants Matricaria" in class_prompts(short, "x", paper=True, taxon=nameless)[0]
    with pytest.raises(UserError, match="has no supercategory, which the original's prompts name; name the table"):
        class_prompts(short, "x", paper=True, taxon={**taxon, "supercategory": ""})
    assert short.classes_count == 10_000 and short.images == 100_000


def test_the_embedded_corpus_is_asked_as_it_is_drawn():
    for slug, record in corpus.datasets().items():
        task = find(slug)
        assert (task.domain, dict(task.classes), task.split) == (record.domain, record.classes, "test")
        assert task.images == corpus.COUNT["test"] * len(record.classes)


def test_classes_are_in_groups_by_crop_and_by_health():
    village = find("plant_village").hierarchy
    assert village["crop"]["Corn_(maize)___healthy"] == village["crop"]["Corn___Common_rust"] == "maize"
    assert village["health"]["Tomato___healthy"] == "healthy" and village["health"]["Tomato___Late_blight"] == "sick"
    crops = list(find("ip102").hierarchy["crop"].values())
    assert [crops.count(crop) for crop in dict.fromkeys(crops)] == [14, 13, 9, 8, 13, 16, 19, 10]


@pytest.mark.parametrize("name", ["plant_village", "Plant-Village", "plant village", "PLANTVILLAGE"])
def test_a_task_is_found_however_its_name_is_written(name):
    assert find(name).name == "plant_village"


def test_a_task_that_is_not_known_is_one_line_with_near_misses():
    with pytest.raises(UserError, match=r"no task 'deepweed' is known; did you mean .*'deep_weeds'"):
        find("deepweed")


def test_the_table_has_a_row_for_each_task():
    rows = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table()}
    assert rows.keys() == {task.name for task in shipped()}
    assert rows["beans"] == {"name": "beans", "domain": "crop", "classes": "3", "images": "128", "unknown": ""}
    assert (rows["agriclip_cid"]["classes"], rows["agriclip_cid"]["unknown"]) == ("?", "class names, images, split")
    assert rows["ip102"]["images"] == "22,619"


# ---- a file of one's own ---------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_says(tmp_path):
    task = read(
        own(
            tmp_path / "quinoa.yaml",
            QUINOA
            | {
                "templates": {"patterns": ["a {noun} of {}.", "a bad {noun} of {}."], "nouns": ["scan", "x-ray"]},
                "paper_templates": ["{} leaf"],
                "paper_names": "{lower}!",
                "split": "test",
                "split_means": "the last row of the field",
                "classes_count": 2,
                "images": 12,
                "hierarchy": {"health": {"sick": ["purple_haze"], "well": ["healthy"]}},
                "citation": "me 2024",
                "unknown": ["source"],
                "notes": "mine",
            },
        )
    )
    assert task.templates == ("a scan of {}.", "a bad scan of {}.", "a x-ray of {}.", "a bad x-ray of {}.")
    assert class_prompts(task, "purple_haze")[0] == "a scan of a quinoa leaf with purple haze."
    assert class_prompts(task, "purple_haze", paper=True) == ["purple haze! leaf"]
    assert task.hierarchy == {"health": {"purple_haze": "sick", "healthy": "well"}}
    assert (task.split, task.split_means, task.images, task.unknown) == (
        "test",
        "the last row of the field",
        12,
        ("source",),
    )


def test_a_file_may_be_short_and_a_list_of_one(tmp_path):
    for content in (QUINOA, [QUINOA]):
        task = read(own(tmp_path / "quinoa.yaml", content))
        assert (task.dataset, task.templates, task.split, task.classes_count, task.images) == ("", (), "", 2, None)
        assert class_prompts(task, "healthy")[-1] == "a healthy quinoa leaf in an agricultural photo."


def test_a_dataset_of_the_catalogue_gives_what_the_file_leaves_out(tmp_path):
    task = read(own(tmp_path / "mine.yaml", {"name": "my_beans", "dataset": "bean_disease_uganda", "split": "all"}))
    beans = catalogue.find("beans")
    assert (task.title, task.domain, dict(task.classes), task.images) == ("iBean", "crop", dict(beans.classes), 1295)
    two = {"bean_rust": "bean rust", "healthy": "healthy bean leaf"}
    task = read(own(tmp_path / "mine.yaml", {"name": "my_beans", "dataset": "beans", "split": "all", "classes": two}))
    assert (dict(task.classes), task.classes_count, task.images) == (two, 2, None)


def test_whole_prompts_take_the_place_of_templates(tmp_path):
    prompts = {"purple_haze": ["a leaf in a purple mist.", "a violet leaf."], "healthy": ["a green leaf."]}
    task = read(own(tmp_path / "quinoa.yaml", QUINOA | {"prompts": prompts}))
    assert {key: class_prompts(task, key) for key in task.classes} == prompts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Quinoa Haze"}, "it has no name of small letters"),
        ({"name": ["x"]}, "it has no name of small letters"),
        ({"template": ["{}"]}, r"\(quinoa_haze\): unknown key 'template'; did you mean 'templates'"),
        ({3: "x"}, "unknown key '3'"),
        ({"title": ""}, "it has no title"),
        ({"domain": "crops"}, "domain 'crops' is unknown; did you mean 'crop'"),
        ({"domain": ["crop"]}, "it has no domain"),
        ({"dataset": "plant_vilage"}, "dataset 'plant_vilage' is not in the catalogue; did you mean 'plant_village'"),
        ({"dataset": ["beans"]}, "dataset must be a text"),
        ({"split": "tset"}, "split 'tset' is unknown; did you mean 'test'"),
        ({"split": ["all"]}, "split must be a text"),
        ({"citation": "one\ntwo"}, "citation must be one line"),
        ({"notes": None}, "notes must be a text"),
        ({"images": "many"}, "images must be a whole number"),
        ({"images": True}, "images must be a whole number"),
        ({"classes_count": 0}, "classes_count must be a whole number above 0"),
        ({"classes_count": 3}, "classes_count is 3, but 2 classes are named"),
        ({"classes": ["healthy"]}, "classes must give each folder"),
        ({"classes": {0: "healthy"}}, "classes must give each folder, a text in quotes"),
        ({"classes": {"a b": "one", "A_b": "two"}}, "classes 'a b' and 'A_b' differ only in case"),
        ({"templates": "a photo of {}"}, "templates must be texts with one {} each"),
        ({"templates": ["a photo"]}, "templates must be texts with one {} each"),
        ({"templates": ["{} and {}"]}, "templates must be texts with one {} each"),
        ({"templates": ["{}"] * 1001}, "at most 1000"),
        ({"templates": {"patterns": ["{noun} {}"] * 40, "nouns": ["x"] * 40}}, "at most 1000"),
        ({"templates": {"patterns": ["a {noun} of {}"]}}, "templates must be texts"),
        ({"paper_templates": [None]}, "paper_templates must be texts"),
        ({"paper_names": "{foldr}"}, "unknown field 'foldr'; did you mean 'folder'"),
        ({"paper_names": "{folder.__class__}"}, "unknown field 'folder.__class__'"),
        ({"paper_names": "{folder:>99999999}"}, "unknown field 'folder'"),
        ({"paper_names": "{folder"}, "is no text with fields in braces"),
        ({"prompts": {"healthy": ["a leaf"]}}, "prompts lacks class 'purple_haze'"),
        ({"prompts": {"healthy": [], "purple_haze": ["x"]}}, "prompts must give each folder a list"),
        ({"prompts": {"helthy": ["a leaf"]}}, "prompts has 'helthy', which is no class; did you mean 'healthy'"),
        ({"hierarchy": {"health": {"well": ["healthy"]}}}, "hierarchy 'health' lacks class 'purple_haze'"),
        ({"hierarchy": {"health": {"a": ["healthy"], "b": ["healthy", "purple_haze"]}}}, "has 'healthy' in two groups"),
        ({"hierarchy": {"health": {"healthy": "well"}}}, "hierarchy must give each rank its groups"),
        ({"hierarchy": ["health"]}, "hierarchy must give each rank its groups"),
        ({"unknown": ["splits"]}, "'splits' is nothing that may be unknown; did you mean 'split'"),
        ({"unknown": "split"}, "unknown must be a list"),
    ],
)
def test_a_bad_entry_is_one_line_that_names_it(tmp_path, change, message):
    for content, where in ((QUINOA | change, "mine.yaml"), ([QUINOA, QUINOA | change], r"mine\.yaml, entry 2")):
        with pytest.raises(UserError, match=f"{where}.*{message}") as error:
            read(own(tmp_path / "mine.yaml", content))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [", "are no valid YAML"),
        (b"\xff\xfe", "are no valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "are no valid YAML"),
        (b"", "are no entry with name, title and domain"),
        (b"[]", "holds 0 tasks, and a file of your own is to hold one"),
        (b" " * (MAX_BYTES + 1), "are larger than 8 MiB"),
    ],
)
def test_a_file_that_is_no_task_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        read(tmp_path / "none.yaml")


# ---- a task and the photos at hand -----------------------------------------------------------------------------------

variants = st.sampled_from([str.upper, str.lower, str.title, lambda k: k.replace("_", "-"), lambda k: f" {k}_"])


@settings(deadline=None)
@given(st.data(), st.sampled_from([task for task in shipped() if task.classes]))
def test_the_classes_of_a_task_are_known_in_any_order_and_spelling_and_a_missing_one_is_always_told(data, task):
    key_of = {name: key for key, name in reversed(task.classes.items())}  # one spelling of each
    keys = data.draw(st.permutations(list(key_of.values())))
    keys = [data.draw(variants)(data.draw(variants)(key)) for key in keys] if len(keys) < 40 else keys
    assert mismatch(task, ["", *keys], {}) == ""
    paired = pairs(task, keys)
    assert list(paired) == keys and {task.classes[of_task] for of_task in paired.values()} == key_of.keys()
    dropped = keys.pop(data.draw(st.integers(0, len(keys) - 1)))
    told = mismatch(task, keys, {})
    assert told == f"{task.name}: 1 of {task.classes_count} classes are missing: {paired[dropped]!r}"


def test_missing_extra_and_double_classes_are_named_with_their_photos():
    beans = find("beans")
    assert mismatch(beans, ["Bean Rust", "HEALTHY", "rust\n"], {"rust\n": 1200}) == (
        "beans: 1 of 3 classes are missing: 'angular_leaf_spot'; "
        "1 of the photos' classes are none of them: 'rust\\n' (1,200 photos)"
    )
    assert mismatch(beans, ["bean_rust", "healthy", "angular_leaf_spot", "Bean Rust"], {}) == (
        "beans: several folders are one class: 'bean_rust' and 'Bean Rust'"
    )
    village = find("plant_village")
    assert "'Cherry___healthy' and 'Cherry_(including_sour)___healthy'" in mismatch(village, village.classes, {})


def test_only_a_few_of_many_classes_are_named():
    told = mismatch(find("ip102"), [f"pest {n}" for n in range(12)], {})
    assert told == (
        "ip102: 102 of 102 classes are missing: '0', '1', '2', '3', '4' and 97 more; 12 of the photos' classes are "
        "none of them: 'pest 0', 'pest 1', 'pest 2', 'pest 3', 'pest 4' and 7 more"
    )


def test_where_classes_are_not_listed_they_are_counted():
    assert mismatch(find("agriclip_cow_breed"), map(str, range(90)), {}) == (
        "agriclip_cow_breed has 3 classes, and the photos 90"
    )
    assert mismatch(find("agriclip_cow_breed"), ["", "a", "b", "c"], {}) == ""
    assert mismatch(find("agriclip_cid"), ["anything"], {}) == ""


def test_another_number_of_photos_is_a_note():
    beans = find("beans")
    assert images_note(beans, {"bean_rust": 100, "healthy": 28}) == ""
    assert images_note(beans, {"bean_rust": 1167, "healthy": 128}) == (
        "beans: 1,295 photos, where the original has 128 (test of TensorFlow Datasets, which is the authors')"
    )
    assert images_note(find("agriclip_cid"), {"a": 1}) == ""


# ---- folders of CLIP_benchmark ---------------------------------------------------------------------------------------


def shard(path: Path, samples: list[tuple[str, bytes]]) -> None:
    """A tar of samples as webdataset writes them, each a class and a photo; without .cls where the class is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, (label, data) in enumerate(samples):
            files = {"cls": label.encode(), "jpg": data} if label else {"jpg": data}
            for ending, content in files.items():
                member = tarfile.TarInfo(f"s{number:07}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def exported(tmp_path):
    """Eleven classes, so that "10" is among them; two shards of test and one of train."""
    folder = tmp_path / "wds_apples"
    colours = ["red", "green", *("blue",) * 8, "yellow"]
    shard(folder / "test/0.tar", [("0", photo("red", 0)), ("10", photo("yellow", 0)), ("1", photo("green", 0))])
    shard(folder / "test/1.tar", [("1", photo("green", 1)), ("0", photo("green", 2))])
    shard(folder / "train/0.tar", [("10", photo("yellow", 3))])
    (folder / "test/nshards.txt").write_text("2\n", encoding="utf-8")
    (folder / "train/nshards.txt").write_text("1", encoding="utf-8")
    lines = [f"{colour} apple {n}" for n, colour in enumerate(colours)]
    (folder / "classnames.txt").write_bytes(("\ufeff" + "\r\n".join([*lines[:3], "", *lines[3:], ""])).encode())
    (folder / "zeroshot_classification_templates.txt").write_bytes(b"a photo of a {c}.\r\n\r\n{c}\r\n")
    return folder


def test_a_folder_of_clip_benchmark_is_a_task_as_it_is(exported):
    found = benchmark_folder(exported)
    assert found.name == "wds_apples" and list(found.splits) == ["test", "train"]
    assert list(found.classes) == [str(n) for n in range(11)]
    assert (found.classes["0"], found.classes["10"]) == ("red apple 0", "yellow apple 10")
    assert found.templates == ("a photo of a {}.", "{}")


def test_a_folder_of_clip_benchmark_is_scored_end_to_end(exported):
    found = benchmark_folder(exported)
    photos = survey([found.splits["test"]], ratios={"test": 100})
    record = photos.datasets["wds_apples"]
    assert record.classes == {key: found.classes[key] for key in ("0", "1", "10")}
    assert record.templates == found.templates and not photos.problems
    keys = list(found.classes)
    task = Task(
        name="wds_apples",
        group="downstream",
        domain="other",
        split="test",
        class_keys=tuple(keys),
        class_names=tuple(found.classes.values()),
        templates=found.templates,
        count=5,
        photos=lambda: (Photo(e.image, keys.index(e.class_key), e.source) for e in photos.examples()),
    )
    (result,) = zeroshot.evaluate(ColourModel(), [task])
    assert result.metrics.images == 5 and result.metrics.top1 == 4 / 5
    confusion = statistics.confusion(result.answers.labels, result.answers.predicted, len(keys))
    assert confusion[[0, 0, 1, 10], [0, 1, 1, 10]].tolist() == [1, 1, 2, 1]
    assert "wds_apples/1.tar/s0000001.jpg" in {photo.source for photo in task.photos()}


def test_without_templates_there_are_none(exported):
    (exported / "zeroshot_classification_templates.txt").unlink()
    (exported / "dataset_type.txt").write_text("Classification\n", encoding="utf-8")
    assert benchmark_folder(exported).templates == ()


def test_only_the_shards_that_are_counted_are_read(exported):
    shard(exported / "test/2.tar", [("99", photo("red"))])
    photos = survey([benchmark_folder(exported).splits["test"]])
    assert sum(photos.counts["wds_apples"].values()) == 5


@pytest.mark.parametrize(
    ("label", "told"),
    [("11", "has class '11'"), ("-1", "has class '-1'"), ("red", "has class 'red'"), ("", "has no class")],
)
def test_a_sample_of_no_known_class_is_one_line_that_names_it(exported, label, told):
    shard(exported / "test/1.tar", [("1", photo("green")), (label, photo("red"))])
    source = benchmark_folder(exported).splits["test"]
    message = rf"test: 1\.tar/s0000001\.jpg {told}, but the 11 lines of classnames\.txt are 0 to 10"
    with pytest.raises(UserError, match=message) as error:
        survey([source])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classnames.txt", b"\n \r\n", r"has no classnames\.txt with a class in each line"),
        ("classnames.txt", None, r"has no classnames\.txt"),
        ("classnames.txt", b"caf\xe9\n", r"classnames\.txt is no UTF-8 text"),
        ("classnames.txt", b"x" * (MAX_BYTES + 1), r"classnames\.txt is larger than 8 MiB"),
        ("zeroshot_classification_templates.txt", b"a photo of an apple", r"'a photo of an apple' needs one \{c\}"),
        ("zeroshot_classification_templates.txt", b"{c}\n{c} and {c}", r"'\{c\} and \{c\}' needs one \{c\}"),
        ("zeroshot_classification_templates.txt", b"{} or {c}", r"needs one \{c\}, where the class goes"),
        ("test/nshards.txt", b"two", r"nshards\.txt must say how many shards"),
        ("test/nshards.txt", b"0", r"nshards\.txt must say how many shards"),
        ("test/nshards.txt", b"9" * 5000, r"nshards\.txt must say how many shards"),
        ("test/nshards.txt", b"4", r"test lacks 2 of its 4 shards: 2\.tar, 3\.tar; download it again"),
        ("dataset_type.txt", b"retrieval\n", "is made for 'retrieval'"),
    ],
)
def test_a_damaged_folder_is_one_line(exported, file, content, message):
    (exported / file).unlink(missing_ok=True)
    if content is not None:
        (exported / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        benchmark_folder(exported)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_split_says_what_a_split_is(exported):
    for split in ("test", "train"):
        (exported / split / "nshards.txt").unlink()
    with pytest.raises(UserError, match=r"has no split: a folder such as test, with nshards\.txt"):
        benchmark_folder(exported)
    with pytest.raises(UserError, match=r"has no classnames\.txt"):
        benchmark_folder(exported / "nowhere")


def test_task_files_need_no_jax():
    code = f"import sys, {taskfiles.__name__} as t; t.shipped(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0


def test_a_shard_that_was_cut_anywhere_is_one_line(exported):
    shard = exported / "test" / "0.tar"
    whole = shard.read_bytes()
    for end in range(512, len(whole) - 1024, 512):
        shard.write_bytes(whole[:end])
        try:
            survey([benchmark_folder(exported).splits["test"]], ratios={"test": 100})
        except UserError as error:
            assert "\n" not in str(error)
