"""Well-known datasets are known by every name they go by, and what is said of them can be relied on."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.data import catalogue
from agriclip_jax.data.captions import class_phrase, is_bare
from agriclip_jax.data.catalogue import DOMAINS, NAMED, find, read, record, shipped
from agriclip_jax.data.sources.base import check_record
from agriclip_jax.errors import UserError

ENTRY = {"name": "quinoa_haze", "title": "Quinoa Haze", "domain": "crop", "where": "my own camera"}
SLUGS = [(slug, named) for named in shipped() for slug in (named.name, *named.aliases)]


def datasets_file(path, *entries):
    path.write_text(yaml.safe_dump(list(entries), sort_keys=False), encoding="utf-8")
    return path


# ---- the datasets that are known -------------------------------------------------------------------------------------


def test_the_project_knows_many_datasets_of_every_domain():
    assert len(shipped()) >= 120
    assert {named.domain for named in shipped()} == set(DOMAINS)
    assert [(n.domain, n.name) for n in shipped()] == sorted((n.domain, n.name) for n in shipped())


@pytest.mark.parametrize(
    ("name", "domain", "classes", "images"),
    [  # as the builders of TFDS 4.9.10, AgML 0.8.2 and the datasets' own pages have them
        ("plant_village", "crop", 38, 54303),
        ("plant_village_classification", "crop", 39, 55448),
        ("plant_leaves", "crop", 22, 4502),
        ("plantae_k", "crop", 16, 2153),
        ("cassava", "crop", 5, 5656 + 1889 + 1885),
        ("beans", "crop", 3, 1034 + 133 + 128),
        ("citrus_leaves", "crop", 4, 594),
        ("plant_doc_classification", "crop", 28, 2598),
        ("paddy_disease_classification", "crop", 10, 10407),
        ("arabica_coffee_leaf_disease_classification", "crop", 5, 58549),
        ("mango_leaf_disease_classification", "crop", 8, 4000),
        ("deep_weeds", "weed", 9, 17509),
        ("plant_seedlings_aarhus", "weed", 12, 5539),
        ("cotton_weed_id15", "weed", 15, 5187),
        ("leaf_counting_denmark", "weed", 9, 9372),
        ("riseholme_strawberry_classification_2021", "fruit", 4, 3520),
        ("ip102", "insect", 102, 75222),
        ("dangerous_farm_insects", "insect", 15, 1578),
        ("indian_bovine_breeds", "livestock", 41, 5949),
        ("cattle_breeds", "livestock", 5, 1208),
        ("poultry_diseases", "poultry", 4, 6812),
        ("fish4knowledge", "fish", 23, 27370),
        ("large_scale_fish", "fish", 9, 9000),
        ("fishnet", "fish", 0, 94532),
        ("oxford_flowers102", "other", 102, 1020 + 1020 + 6149),
        ("eurosat", "other", 10, 27000),
        ("resisc45", "other", 45, 45 * 700),
        ("aid", "other", 30, 10000),
        ("i_naturalist2021", "other", 0, 2686843 + 100000),
    ],
)
def test_a_dataset_has_as_many_classes_and_images_as_its_source_says(name, domain, classes, images):
    named = find(name)
    assert (named.name, named.domain, len(set(named.classes.values())), named.images) == (name, domain, classes, images)


def test_the_class_names_of_tensorflow_datasets_are_all_known():
    from tensorflow_datasets.datasets.oxford_flowers102 import oxford_flowers102_dataset_builder as flowers
    from tensorflow_datasets.datasets.plant_leaves import plant_leaves_dataset_builder as leaves
    from tensorflow_datasets.datasets.plant_village import plant_village_dataset_builder as village
    from tensorflow_datasets.datasets.plantae_k import plantae_k_dataset_builder as plantae
    from tensorflow_datasets.datasets.resisc45 import resisc45_dataset_builder as resisc

    assert set(find("plant_village").classes) >= set(village._LABELS)
    assert set(find("plant_leaves").classes) == {label for _, label in leaves._LABEL_MAPPING}
    assert set(find("plantae_k").classes) == {label for _, label in plantae._LABEL_MAPPING}
    assert set(find("oxford_flowers102").classes) == set(flowers._NAMES)
    assert set(find("resisc45").classes) == set(resisc._LABELS)


def test_only_plantvillage_is_about_with_two_spellings_of_its_folders():
    shared = {named.name for named in shipped() if len(set(named.classes.values())) < len(named.classes)}
    assert shared == {"plant_village", "plant_village_classification", "new_plant_diseases"}
    assert len(find("plant_village").classes) == 38 + 6


@pytest.mark.parametrize("named", shipped(), ids=lambda named: named.name)
def test_every_class_is_said_as_people_say_it(named):
    names = set(named.classes.values())
    assert len({class_phrase(name, named.name, named.domain) for name in names}) == len(names)
    for name in names:
        assert name == " ".join(name.split()) and not is_bare(name), name
        assert not re.search("_|  ", class_phrase(name, named.name, named.domain)), name


@pytest.mark.parametrize(
    ("name", "file", "group"),
    [
        ("fish4knowledge", "fish_000000009598_05281.png", "000000009598"),
        ("plant_village", "00075aa8-d81a-4184-8541-b692b78d398a___FREC_Scab 3335.JPG", "FREC_Scab 333"),
        ("plant_village", "image (12).JPG", None),
        ("new_plant_diseases", "00075aa8-d81a-4184-8541-b692b78d398a___FREC_Scab 3335_270deg.JPG", "FREC_Scab 333"),
        (
            "fresh_and_rotten_fruits",
            "translation_Screen Shot 2018-06-08 at 4.59.png",
            "Screen Shot 2018-06-08 at 4.59",
        ),
        ("fresh_and_rotten_fruits", "Screen Shot 2018-06-08 at 4.59.png", "Screen Shot 2018-06-08 at 4.59"),
    ],
)
def test_a_group_tells_from_the_file_name_what_stays_together(name, file, group):
    match = re.search(find(name).group, file)
    assert (match and match[match.re.groups]) == group


def test_what_a_dataset_is_unknown_for_is_left_out():
    deepfish = find("deepfish")
    assert (deepfish.images, dict(deepfish.classes), deepfish.group) == (None, {}, "")
    assert find("supermarket_fish").license == ""


def test_the_files_give_the_fields_in_one_order():
    order = ["name", "title", "aliases", "domain", "where", "images", "license", "group", "classes", "notes"]
    for path in sorted(NAMED.glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            assert list(entry) == [key for key in order if key in entry], entry["name"]


# ---- finding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["_", "-", " ", "", " - "])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("ending", ["", "-main", "_dataset", " Dataset-master", "_train"])
def test_every_name_and_alias_finds_its_own_dataset_however_it_is_written(separator, case, ending):
    for slug, named in SLUGS:
        assert find(case(slug.replace("_", separator)) + ending) is named, slug


@pytest.mark.parametrize(
    ("slug", "name"),
    [
        ("PlantVillage-Dataset-master", "plant_village"),
        ("plantvillage dataset", "plant_village"),
        ("DeepWeeds", "deep_weeds"),
        ("PlantDoc-Dataset-master", "plant_doc_classification"),
        ("a-large-scale-fish-dataset", "large_scale_fish"),
        ("riseholme-2021-main", "riseholme_strawberry_classification_2021"),
        ("bean_disease_uganda", "beans"),
    ],
)
def test_archives_are_known_by_the_names_they_are_downloaded_with(slug, name):
    assert find(slug).name == name


@pytest.mark.parametrize("slug", ["", "_", "dataset", "main", "my_photos", "plant", "fish", "健康"])
def test_what_is_no_known_dataset_is_none(slug):
    assert find(slug) is None


@settings(deadline=None)  # a busy machine may pause for long
@given(st.text())
def test_no_name_breaks_the_search(slug):
    assert find(slug) is None or find(slug) in shipped()


def test_the_record_of_every_dataset_is_one_that_a_build_takes():
    for named in shipped():
        check_record(record(named), named.name)
    beans = record(find("beans"))
    assert (beans["name"], beans["domain"], beans["license"], beans["source"]) == ("beans", "crop", "MIT", "tfds:beans")
    assert beans["classes"]["bean_rust"] == "bean leaf with bean rust"
    assert record(find("fish4knowledge"))["group"] == r"^fish_(\d+)_"


# ---- files of datasets -----------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_says(tmp_path):
    given_all = {
        **ENTRY,
        "aliases": ["purple_haze"],
        "images": 12,
        "license": "CC0",
        "group": r"^(\d+)_",
        "classes": {"0": "quinoa leaf with purple haze"},
        "notes": "mine",
    }
    (named,) = read([datasets_file(tmp_path / "mine.yaml", given_all)])
    assert record(named) == {
        "name": "quinoa_haze",
        "domain": "crop",
        "classes": {"0": "quinoa leaf with purple haze"},
        "license": "CC0",
        "source": "my own camera",
        "group": r"^(\d+)_",
    }
    assert (named.title, named.aliases, named.images, named.notes) == ("Quinoa Haze", ("purple_haze",), 12, "mine")
    (named,) = read([datasets_file(tmp_path / "mine.yaml", ENTRY)])
    assert (named.aliases, named.images, named.license, named.group, named.notes) == ((), None, "", "", "")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "entry 1: it has no name"),
        ({"title": "Nameless"}, "entry 1: it has no name"),
        (ENTRY | {"name": "Quinoa Haze"}, "entry 1: it has no name of small letters"),
        (ENTRY | {"licence": "CC0"}, r"\(quinoa_haze\): unknown key 'licence'; did you mean 'license'"),
        (ENTRY | {3: "x"}, "unknown key '3'"),
        (ENTRY | {"title": " "}, "it has no title"),
        (ENTRY | {"where": None}, "it has no where"),
        (ENTRY | {"domain": "crops"}, "domain 'crops' is unknown; did you mean 'crop'"),
        (ENTRY | {"domain": ["crop"]}, "it has no domain, which must be a text"),
        (ENTRY | {"license": 4.0}, "license must be a text"),
        (ENTRY | {"notes": None}, "notes must be a text"),
        (ENTRY | {"aliases": "purple_haze"}, "aliases must be a list of slugs"),
        (ENTRY | {"aliases": ["Purple Haze"]}, "aliases must be a list of slugs"),
        (ENTRY | {"images": "many"}, "images must be a whole number"),
        (ENTRY | {"images": True}, "images must be a whole number"),
        (ENTRY | {"images": 0}, "images must be a whole number above 0"),
        (ENTRY | {"classes": ["healthy"]}, "classes must give each folder"),
        (ENTRY | {"classes": {0: "healthy quinoa"}}, "classes must give each folder, a text in quotes"),
        (ENTRY | {"classes": {"0": ""}}, "classes must give each folder"),
        (ENTRY | {"group": "("}, "group is no regular expression"),
        (ENTRY | {"group": "a{9999999999}"}, "group is no regular expression"),
        (ENTRY | {"group": "a" * 101}, "group has more than 100 characters"),
    ],
)
def test_a_bad_entry_is_one_line_that_names_it(tmp_path, entry, message):
    with pytest.raises(UserError, match=message) as error:
        read([datasets_file(tmp_path / "mine.yaml", entry)])
    assert "\n" not in str(error.value) and "mine.yaml" in str(error.value)


@pytest.mark.parametrize("other", [{"name": "quinoahaze"}, {"name": "rice", "aliases": ["quinoa_haze_dataset"]}])
def test_two_datasets_of_one_name_are_one_line_wherever_they_are(tmp_path, other):
    one, two = datasets_file(tmp_path / "1.yaml", ENTRY), datasets_file(tmp_path / "2.yaml", ENTRY | other)
    message = rf"2\.yaml, entry 1 \({other['name']}\): '.*' is quinoa_haze already"
    with pytest.raises(UserError, match=message):
        read([one, two])
    with pytest.raises(UserError, match=r"entry 2 .* is quinoa_haze already"):
        read([datasets_file(tmp_path / "both.yaml", ENTRY, ENTRY | other)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- name: [", "are no valid YAML"),
        (b"\xff\xfe", "are no valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "are no valid YAML"),
        (b"[" * 100_000, "are no valid YAML"),
        (b"name: x", "are not a list of entries"),
        (b"", "are not a list of entries"),
        (b" " * (catalogue.MAX_BYTES + 1), "are larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_list_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read([tmp_path / "mine.yaml"])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        read([tmp_path / "none.yaml"])
