"""Captions say what is seen, in English that a person would write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.data import captions
from agriclip_jax.data.captions import class_identity, class_phrase, fill, is_bare, normalise_caption, templates, words

DOMAINS = ("crop", "fruit", "weed", "insect", "livestock", "poultry", "fish", "other")


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("bean leaf with rust", "a bean leaf with rust"),
        ("unripe apple", "an unripe apple"),
        ("uniform leaf", "a uniform leaf"),
        ("uninfected bean leaf", "an uninfected bean leaf"),
        ("European carp", "a European carp"),
        ("orange", "an orange"),
        ("NPK deficient bean plant", "an NPK deficient bean plant"),
        ("8 row barley head", "an 8 row barley head"),
        ("healthy cattle", "healthy cattle"),
        ("Angus cattle (young) in a field", "Angus cattle (young) in a field"),
        ("ripe plums", "ripe plums"),
        ("weed plants in a field", "weed plants in a field"),
        ("weed plant among beets", "a weed plant among beets"),
        ("bean leaves damaged by thrips", "bean leaves damaged by thrips"),
        ("praying mantis", "a praying mantis"),
        ("garlic", "garlic"),
        ("ryegrass", "ryegrass"),
        ("sheep", "a sheep"),
        ("catfish (magur)", "a catfish (magur)"),
        ("Gadus morhua (Atlantic cod)", "an Atlantic cod (Gadus morhua)"),
        ("Gadidae (codfish)", "a codfish (Gadidae)"),
        ("Gadus morhua", "Gadus morhua"),
        ("a tame goose", "a tame goose"),
        ("bean healthy", "a healthy bean"),
        ("健康", "健康"),
    ],
)
def test_a_name_becomes_a_noun_phrase_with_its_article(name, phrase):
    assert class_phrase(name, "any", "other") == phrase


@pytest.mark.parametrize(
    ("name", "dataset", "domain", "phrase"),
    [
        ("healthy", "banana_leaf", "crop", "a healthy banana leaf"),
        ("healthy", "banana_deficiency", "crop", "a healthy banana plant"),
        ("healthy", "banana_leaf_disease", "other", "a healthy banana leaf"),
        ("Healthy", "field_day", "other", "a healthy example in the field day set"),
        ("rust", "wheat_leaf", "crop", "a wheat leaf with rust"),
        ("Late_Blight", "potato", "crop", "a potato plant with late blight"),
        ("grey leaf spot", "maize", "crop", "a maize leaf with grey leaf spot"),
        ("boron", "banana_deficiency", "crop", "a banana plant with boron deficiency"),
        ("ripe", "mango_ripeness", "fruit", "a ripe mango"),
        ("overripe", "ripeness", "fruit", "an overripe fruit"),
        ("normal", "cattle_health", "livestock", "normal cattle"),
        ("fresh", "fish_quality", "fish", "a fresh fish"),
        ("Newcastle disease", "hen_health", "poultry", "a hen with Newcastle disease"),
        ("others", "bean_set", "crop", "others in the bean set"),
        ("3", "apple_quality", "fruit", "3 in the apple quality set"),
    ],
)
def test_a_bare_condition_gets_the_words_of_its_dataset(name, dataset, domain, phrase):
    assert class_phrase(name, dataset, domain) == phrase


@pytest.mark.parametrize(
    ("slug", "name"),
    [
        ("bean_leaf_with_rust", "bean leaf with rust"),
        ("BlackRot", "Black Rot"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("3_leaf_stage", "3 leaf stage"),
        ("Tomato___Late_blight", "Tomato with Late blight"),
        ("Tomato___healthy", "healthy Tomato"),
        ("___", "___"),
        ("7", "7"),
    ],
)
def test_slugs_become_words(slug, name):
    assert words(slug) == name


def test_captions_of_a_class():
    made = captions.captions("bean leaf with rust", "crop", "bean")
    assert made[0] == ("a photo of a bean leaf with rust.", "template")
    assert ("a plant health photo of a bean leaf with rust.", "template") in made
    assert 4 <= len(made) <= 8 and len(set(made)) == len(made)


@pytest.mark.parametrize("domain", [*DOMAINS, "moss"])
def test_templates_take_one_phrase(domain):
    assert 4 <= len(templates(domain)) <= 8
    assert "a photo of {}." in templates(domain)
    assert all(template.count("{}") == 1 for template in templates(domain))
    if domain not in DOMAINS:
        assert templates(domain) == templates("other")


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("a photo of {}.", "a photo of a bean leaf."),
        ("a photo of a {}.", "a photo of a bean leaf."),
        ("{}", "a bean leaf"),
        ("bean {} of {}", "bean a bean leaf of {}"),
    ],
)
def test_an_article_is_never_doubled(template, filled):
    assert fill(template, "a bean leaf") == filled


def test_names_that_say_the_same_are_one_class():
    assert class_identity("healthy bean leaf", "one") == class_identity("A Healthy  bean leaf.", "two")
    assert class_identity("bean leaf with rust", "one") != class_identity("bean leaf with scab", "one")


@pytest.mark.parametrize(
    "name",
    ["healthy", "Healthy", "rust", "others", "normal", "diseased", "ripe", "3", "c12", "leaf_spot", "red", "unknown"],
)
def test_a_bare_condition_is_no_class_across_datasets(name):
    assert is_bare(name)
    assert class_identity(name, "maize") != class_identity(name, "wheat")
    assert class_identity(name, "maize") == class_identity(name.upper(), "maize")


@pytest.mark.parametrize(
    "name", ["healthy bean leaf", "orange", "fish", "ripe plums", "sheep with orf", "Angus cattle"]
)
def test_a_name_with_its_host_is_not_bare(name):
    assert not is_bare(name)


def test_normalised_captions_differ_only_in_what_they_say():
    assert normalise_caption("  A photo of\ta BEAN leaf. ") == normalise_caption("a photo of a bean leaf")
    assert normalise_caption("a photo of a bean leaf") != normalise_caption("a photo of a pea leaf")


@settings(max_examples=50)
@given(st.text(max_size=60), st.sampled_from([*DOMAINS, ""]), st.text(max_size=30))
def test_any_name_gets_captions_that_contain_its_words(name, domain, dataset):
    for text, kind in captions.captions(name, domain, dataset):
        assert kind == "template"
        spoken = captions._plain_words(text)
        if not is_bare(name):
            assert set(captions._plain_words(name)) <= {*spoken, "a", "an", "the"}
    assert class_identity(name, dataset) == class_identity(f"  {name} ", dataset)
