"""What a class looks like is found by its name, in a table that every entry of can be trusted to be whole."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.data import knowledge
from agriclip_jax.data.knowledge import KINDS, MAX_WORDS, read, shipped, table
from agriclip_jax.errors import UserError

KNOWN = table()
ENTRY = {"name": "purple haze", "kind": "disease", "hosts": ["quinoa"], "signs": ["purple rings on the leaf"]}


def facts_file(path, *entries):
    path.write_text(yaml.safe_dump(list(entries)), encoding="utf-8")
    return path


# ---- the table that ships --------------------------------------------------------------------------------------------


def test_the_project_knows_a_lot_and_of_every_kind():
    assert len(shipped()) >= 200
    assert {fact.kind for fact in shipped()} == set(KINDS)


def test_a_name_with_its_hosts_is_there_once():
    seen = [(fact.name.casefold(), fact.kind, tuple(sorted(fact.hosts))) for fact in shipped()]
    assert len(seen) == len(set(seen))


def test_every_sign_says_in_few_words_something_of_its_own():
    for fact in shipped():
        assert fact.reference and len(set(fact.signs)) == len(fact.signs) >= 2, fact.name
        for sign in fact.signs:
            assert 3 <= len(sign.split()) <= MAX_WORDS and not sign.endswith("."), sign
            assert sign == " ".join(sign.split()), sign


# ---- finding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "dataset", "domain", "found"),
    [
        ("tomato leaf with late blight", "any", "crop", ("late blight", "tomato")),
        ("potato leaf with late blight", "any", "crop", ("late blight", "potato")),
        ("Late_Blight", "potato", "crop", ("late blight", "potato")),
        ("maize leaf with northern leaf blight", "any", "crop", ("northern leaf blight", "maize")),
        ("boron", "banana_deficiency", "crop", ("boron deficiency", None)),
        ("healthy", "banana_leaf", "crop", ("healthy", "leaf")),
        ("healthy cattle", "any", "livestock", ("healthy", "cattle")),
        ("Jersey cattle", "any", "livestock", ("Jersey", "cattle")),
        ("Murrah sheep", "any", "livestock", ("sheep", None)),  # Murrah is a buffalo
        ("black-grass weed seedling", "any", "weed", ("black-grass", None)),
        ("maize seedling", "any", "weed", ("seedling stage", None)),
        ("rice spiny beetle (hispa)", "any", "insect", ("rice hispa", "rice")),
        ("catla (katla) carp fish", "any", "fish", ("catla", None)),
        ("Zanclus cornutus (Moorish idol)", "any", "fish", ("Moorish idol", None)),
        ("orange bell pepper", "any", "fruit", ("orange bell pepper", None)),
        ("overripe bananas", "any", "fruit", ("overripe", "banana")),
        ("tulip flower", "any", "other", ("tulip", None)),
        ("Granny Smith apple", "any", "fruit", ("Granny Smith", None)),
    ],
)
def test_a_class_finds_the_fact_that_says_most_of_what_it_says(class_name, dataset, domain, found):
    fact = KNOWN.find(class_name, dataset, domain)
    assert fact is not None and fact.name == found[0]
    assert found[1] in fact.hosts if found[1] else not fact.hosts


@pytest.mark.parametrize(
    ("class_name", "domain"),
    [
        ("tractor", "other"),
        ("apple leaf with unknownitis", "other"),  # a leaf shows no apple
        ("class 3", "crop"),
        ("tulip leaf", "other"),
        ("", "other"),
        ("健康", "other"),
    ],
)
def test_what_nothing_is_known_of_finds_nothing(class_name, domain):
    assert KNOWN.find(class_name, "any", domain) is None
    assert KNOWN.captions(class_name, domain, "any") == []


@settings(deadline=None)  # a busy machine may pause for long
@given(st.sampled_from(shipped()))
def test_a_fact_is_found_by_its_own_name_and_host(fact):
    named = f"{fact.name} {fact.hosts[0] if fact.hosts else ''}"
    found = knowledge.Knowledge([fact]).find(named, "any", "every kind")
    assert found is fact or fact.kind in ("fruit", "ripeness", "flower")


@settings(deadline=None)  # a busy machine may pause for long
@given(st.text(), st.text())
def test_no_name_breaks_the_search(class_name, dataset):
    KNOWN.captions(class_name, "other", dataset)


def test_a_leaf_shows_no_sign_of_the_fruit():
    known = knowledge.Knowledge(
        [
            knowledge.Fact(
                "rot", "disease", (), (), ("soft brown fruit", "wet leaf edges", "a sour slime"), "general knowledge"
            )
        ]
    )
    assert known.captions("pear leaf with rot", "crop", "any") == [
        "a pear leaf with rot, showing wet leaf edges.",
        "a pear leaf with rot, showing a sour slime.",
    ]
    assert len(known.captions("pear with rot", "crop", "any")) == 3


# ---- the user's own facts --------------------------------------------------------------------------------------------


def test_the_users_facts_come_before_the_projects(tmp_path):
    mine = facts_file(tmp_path / "mine.yaml", ENTRY, ENTRY | {"name": "late blight", "hosts": ["tomato"]})
    known = table([mine])
    assert known.captions("quinoa with purple haze", "crop", "any") == [
        "a quinoa with purple haze, showing purple rings on the leaf."
    ]
    assert known.find("tomato leaf with late blight", "any", "crop").signs == ("purple rings on the leaf",)
    (fact, _) = read(mine)
    assert (fact.synonyms, fact.reference) == ((), "general knowledge")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "entry 1: it has no name"),
        ({"kind": "disease"}, "entry 1: it has no name"),
        (ENTRY | {"sings": ["x"]}, r"\(purple haze\): unknown key 'sings'; did you mean 'signs'"),
        (ENTRY | {"kind": "diseaze"}, "kind 'diseaze' is unknown; did you mean 'disease'"),
        (ENTRY | {"signs": []}, "it has no signs"),
        (ENTRY | {"signs": "purple"}, "signs must be a list of texts"),
        (ENTRY | {"hosts": [3]}, "hosts must be a list of texts"),
        (ENTRY | {"signs": ["very " * 17]}, "has more than 16 words"),
        (ENTRY | {"reference": ""}, "reference must name a source, or say 'general knowledge'"),
    ],
)
def test_a_bad_entry_is_one_line_that_names_it(tmp_path, entry, message):
    with pytest.raises(UserError, match=message) as error:
        read(facts_file(tmp_path / "mine.yaml", entry))
    assert "\n" not in str(error.value) and "mine.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- name: [", "are no valid YAML"),
        (b"\xff\xfe", "are no valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "are no valid YAML"),
        (b"[" * 100_000, "are no valid YAML"),
        (b"name: x", "are not a list of entries"),
        (b"", "are not a list of entries"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        read(tmp_path / "none.yaml")
