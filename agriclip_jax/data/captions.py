"""Class names as people say them -> grammatical captions and zero-shot prompts.

A *phrase* is a noun phrase with its article: "a coffee leaf with rust", "an Ajwa date fruit", "Ayrshire cattle". A
template has one `{}` that takes a phrase. Captions and prompts are made of the same templates.
"""

import re
import unicodedata

_GENERAL = ("a photo of {}.", "an image of {}.", "{}.", "a picture showing {}.")
_BY_DOMAIN = {
    "crop": ("a plant health photo of {}.", "{} in an agricultural photo."),
    "fruit": ("a produce photo of {}.", "{} in a photo for fruit grading."),
    "weed": ("a weed survey photo of {}.", "{} in a photo for weed control."),
    "insect": ("an entomology photo of {}.", "{} in a crop protection photo."),
    "livestock": ("a farm photo of {}.", "{} in a livestock photo."),
    "poultry": ("a farm photo of {}.", "{} in a poultry keeping photo."),
    "fish": ("a fishery photo of {}.", "{} in a photo of aquatic life."),
    "other": ("an agricultural photo of {}.", "{} in a nature photo."),
}


def templates(domain: str) -> tuple[str, ...]:
    """Zero-shot prompts of a domain, each with one `{}` for a phrase; an unknown domain has those of "other"."""
    return _GENERAL + _BY_DOMAIN.get(domain, _BY_DOMAIN["other"])


def captions(class_name: str, domain: str, dataset: str) -> list[tuple[str, str]]:
    """Captions of a class as (text, kind), visual content first: every template of the domain with the class's phrase.

    Args:
      class_name: as people say it: "coffee leaf with rust".
      domain: "crop", ..., "other".
      dataset: slug, which tells two bare "healthy" apart.
    """
    phrase = class_phrase(class_name, dataset, domain)
    return [(fill(template, phrase), "template") for template in templates(domain)]


def fill(template: str, phrase: str) -> str:
    """The template with the phrase in place of `{}`; "a photo of a {}" takes it without its own article."""
    before, _, after = template.partition("{}")
    if re.search(r"\b(a|an|the)\s+$", before, re.IGNORECASE):
        phrase = without_article(phrase)
    return before + phrase + after


def class_phrase(class_name: str, dataset: str, domain: str) -> str:
    """The class as a noun phrase with its article.

    A bare condition gets the words of its dataset: "healthy" of banana_leaf is "a healthy banana leaf", "rust" there "a
    banana leaf with rust". Where the dataset does not tell what is seen, its name follows: "a healthy example in the
    field day set". A Latin name goes behind the common one: "a parrotfish (Scaridae)".
    """
    name = " ".join(class_name.replace("_", " ").split())
    if is_bare(name):
        return _qualified(_lowered(name), dataset, domain)
    *thing, last = name.split()
    if last.casefold() in _MOVABLE and thing[0].casefold() not in _MOVABLE:
        name = f"{last.casefold()} {' '.join(thing)}"
    latin = re.fullmatch(r"([^()]+) \(([^()]+)\)", name)
    if latin and _is_latin(latin[1]) and not _is_latin(latin[2]):
        name = f"{latin[2]} ({latin[1]})"
    return _with_article(name)


def class_identity(class_name: str, dataset: str) -> str:
    """What a class is, across datasets: equal when display names say the same thing.

    A bare condition ("healthy", "rust", "others", "3") belongs to its dataset, so it is not one class across crops.
    """
    identity = without_article(normalise_caption(class_name))
    return f"{dataset}: {identity}" if is_bare(class_name) else identity


def normalise_caption(text: str) -> str:
    """The caption without differences that say nothing: case, Unicode form, white space, a final full stop."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .")


def words(slug: str) -> str:
    """A folder or file name as words: "BlackRot" and "001.black_rot" are "black rot" but for the case.

    "Tomato___Late_blight", the way of PlantVillage, is "Tomato with Late blight", "Tomato___healthy" "healthy Tomato".
    """
    host, separator, condition = slug.partition("___")
    if separator and host.strip("_") and condition.strip("_"):
        host, condition = words(host), words(condition)
        return f"{condition} {host}" if condition.casefold() in _MOVABLE else f"{host} with {condition}"
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", slug.replace("_", " "))
    spaced = re.sub(r"^\s*(\d{3,}|0\d*|\d+\.)[\s.-]*(?=[^\W\d])", "", spaced)
    return " ".join(spaced.split()) or slug


# ---- bare conditions -------------------------------------------------------------------------------------------------


def word_set(text: str) -> frozenset[str]:
    """The words of a text, for a table of words."""
    return frozenset(text.split())


_STATES = word_set(
    "healthy unhealthy normal abnormal diseased disease-free infected uninfected infested affected sick ill "
    "ripe unripe overripe underripe raw rotten fresh stale spoiled dry dried wet dead alive live mature "
    "immature young old adult good bad damaged undamaged defective defected deficient stressed unstressed male "
    "female resistant susceptible early late mild moderate severe slight heavy initial advanced partially "
    "fully half semi very not non un over under moderately slightly severely highly lightly heavily high low "
    "medium small large big and or"
)
_MOVABLE = word_set("healthy unhealthy diseased infected infested ripe unripe overripe rotten fresh damaged normal")
_COLOURS = word_set("red green yellow brown black white grey gray purple pink blue dark pale")
_AILMENTS = word_set(
    "rust blight mildew spot spots scab mosaic wilt smut canker rot mould mold anthracnose blast scorch curl "
    "burn chlorosis necrosis deficiency deficiencies disease diseases virus viruses infection die-back dieback "
    "gall galls streak measles greening esca phoma cercospora septoria alternaria fusarium botrytis downy "
    "powdery sooty leafspot tungro hispa miner mite mites aphid aphids whitefly thrips weevil lesion lesions "
    "damage injury stress pest pests coccidiosis salmonella newcastle ringworm mastitis lumpy foot mouth foot- "
    "and-mouth sclerotia pox"
)
_AILMENT_WORDS = word_set(
    "leaf leaves common northern southern bacterial fungal viral target ring tip edge stem fruit root crown "
    "collar skin orange shot eye halo angular stripe sheath yellows tan net brown's cutting insect"
)
_NUTRIENTS = word_set(
    "nitrogen phosphorus potassium calcium magnesium sulphur sulfur iron manganese zinc boron copper "
    "molybdenum n p k ca mg s fe mn zn b cu mo"
)
_REST = word_set(
    "other others unknown none background negative positive misc miscellaneous control class grade level type "
    "category stage group no yes na n/a undefined unlabelled unlabeled unclassified rest"
)
_ORGANS = word_set(
    "leaf leaves plant plants fruit fruits flower flowers stem stems root roots seedling seedlings patch"
)


def is_bare(class_name: str) -> bool:
    """Whether a name tells only a condition ("healthy", "late blight", "others", "3"), not what has it."""
    parts = _plain_words(class_name)
    if not parts or all(part in _REST or _is_code(part) for part in parts) or set(parts) <= _COLOURS:
        return True
    if set(parts) <= _NUTRIENTS and max(map(len, parts)) > 2:
        return True
    condition = any(part in _STATES | _AILMENTS for part in parts)
    known = _STATES | _COLOURS | _AILMENTS | _AILMENT_WORDS | _NUTRIENTS | _REST | _ORGANS
    return condition and all(part in known or _is_code(part) for part in parts)


def _is_code(word: str) -> bool:
    return len(word) == 1 or re.fullmatch(r"[a-z]{0,2}\d+[a-z]?", word) is not None


def _plain_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[-'/’][^\W_]+)*", normalise_caption(text).replace("_", " "))


_SET_WORDS = word_set(
    "dataset datasets data images image photos photo pictures disease diseases deficiency deficiencies "
    "classification classes detection recognition identification train test val subset pv uci health quality "
    "ripeness grading maturity symptoms symptom condition conditions status pest pests insects breeds breed "
    "species collection pack set severity challenge kaggle plantvillage plantdoc sex gender age final new raw "
    "crops small large mini the of and for in"
)
_DOMAIN_NOUN = {"crop": "plant", "fruit": "", "weed": "plant", "insect": "", "livestock": "", "poultry": "", "fish": ""}
_DOMAIN_ALONE = {
    "crop": "plant",
    "fruit": "fruit",
    "weed": "plant",
    "insect": "insect",
    "livestock": "animal",
    "poultry": "bird",
    "fish": "fish",
}


def _lowered(name: str) -> str:
    """A bare condition in lower case, but for abbreviations and Newcastle."""
    lowered = [word if len(word) < 3 and word.isupper() else word.lower() for word in name.split()]
    return " ".join(lowered).replace("newcastle", "Newcastle")


def _qualified(name: str, dataset: str, domain: str) -> str:
    """The phrase of a bare condition, in the words of its dataset."""
    parts = _plain_words(name)
    told = words(dataset)
    if set(parts) <= _NUTRIENTS and "deficien" in told.lower():
        name, parts = f"{name} deficiency", [*parts, "deficiency"]
    is_state = bool(parts) and all(part in _STATES | _COLOURS | _ORGANS for part in parts)
    is_ailment = any(part in _AILMENTS for part in parts)
    organs = [part for part in parts if part in (_ORGANS if is_state else ("leaf", "leaves"))]
    thing = _thing(organs, told, domain)
    if thing and is_state:
        state = " ".join(word for word in name.split() if word not in _ORGANS)
        return _with_article(f"{state} {thing}" if state else thing)
    if thing and is_ailment:
        return _with_article(f"{thing} with {name}")
    where = f"in the {re.sub(r'(?i)[ -]*(data)?set$', '', told) or 'unnamed'} set"
    return _with_article(f"{name} example {where}") if is_state else f"{name or 'something'} {where}"


def _thing(organs: list[str], told: str, domain: str) -> str:
    """What the photos of a dataset show ("banana leaf"), from its name; empty when the name does not tell."""
    told = _plain_words(told.replace("-", " "))
    no_host = _SET_WORDS | _ORGANS | _AILMENTS | _COLOURS
    host = [word for word in told if word not in no_host and not _is_code(word)]
    organs = organs + [word for word in told if word in _ORGANS]
    if len(host) > 3 or (domain not in _DOMAIN_ALONE and not (organs and host)):
        return ""
    if not host:
        return _singular(organs[0]) if organs else _DOMAIN_ALONE[domain]
    noun = _singular(organs[0]) if organs else _DOMAIN_NOUN[domain]
    return " ".join([*host, noun]).strip()


def _singular(organ: str) -> str:
    return "leaf" if organ == "leaves" else organ.removesuffix("s")


# ---- articles --------------------------------------------------------------------------------------------------------

_BREAKS = word_set(
    "with without on in of among by from at under over near for showing having caused infected affected "
    "infested damaged attacked covered eaten that which"
)
_PLURALS = word_set("cattle people geese mice lice fungi larvae pupae poultry livestock swine oxen children teeth feet")
_SINGULARS_IN_S = word_set(
    "thrips species series citrus asparagus cactus hibiscus iris mantis ibis octopus walrus hippopotamus lens "
    "molasses cleavers canvas bias gas atlas pancreas coreopsis"
)
_UNCOUNTABLE = word_set(
    "damage garlic rust blight mildew rot mould mold smut blast scab wilt mosaic chlorosis anthracnose wheat "
    "rice maize corn barley rye oat sorghum millet cotton soil water grass spinach broccoli celery kale ginger "
    "parsley coriander mint basil okra lettuce foliage manure dung feces faeces hay straw silage meat beef "
    "pork wool honey milk evidence coccidiosis salmonella disease vegetation charlock"
)


def _with_article(name: str) -> str:
    """The name with "a" or "an" where English wants one."""
    first = name.split(" ", 1)[0] if name else ""
    if not re.match(r"[('\"‘“]?[A-Za-zÀ-ɏ0-9]", first) or first.casefold() in {
        "a",
        "an",
        "the",
        "no",
        "some",
        "several",
        "many",
    }:
        return name
    head = _head(name)
    plural = head in _PLURALS or (
        head.endswith("s")
        and not head.endswith(("ss", "us", "is", "'s", "’s"))
        and head not in _SINGULARS_IN_S
        and len(head) > 2
    )
    mass = head in _UNCOUNTABLE or re.fullmatch(r"\w+(grass|weed)", head) is not None
    if plural or head in ("leaves",) or mass or _is_latin(re.sub(r"\s*\(.*", "", name)):
        return name
    return f"{'an' if _starts_with_vowel_sound(first) else 'a'} {name}"


def _head(name: str) -> str:
    """The noun that decides number: "plants" in "weed plants (young) in a field"."""
    spoken = re.sub(r"\([^)]*\)", " ", name).split(",")[0].casefold().split()
    for position, word in enumerate(spoken):
        if position and word in _BREAKS:
            return spoken[position - 1]
    return spoken[-1] if spoken else name.casefold()


def _starts_with_vowel_sound(word: str) -> bool:
    if re.fullmatch(r"[A-Z]{2,}\d*", word):  # spelled out: "an NPK ...", "a UV ..."
        return word[0] in "AEFHILMNORSX"
    word = word.casefold().lstrip("('\"‘“")
    if word[:1].isdigit():
        return re.match(r"8|1[18](?!\d)", word) is not None
    if re.match(r"eu|ewe|one|once|uni(?![dmnr])|us[aeiu]|ut[aeiou]|ur[aeiou]|ub[ei]", word):
        return False
    return re.match(r"[aeiouàáâãäåæèéêëìíîïòóôõöøùúûü]|hour|honest|heir", word) is not None


_LATIN_GENUS = re.compile(r"[A-Z][a-z]+(us|is|ys|ium|ops|don|gon|phon|ella|aster|soma|thus)")
_LATIN_EPITHET = re.compile(r"[a-z]{2,}(us|is|ii|ae|um|ens|ata|atum|oides|orum|arum|ini)")


def _is_latin(name: str) -> bool:
    """Whether a name is a scientific one by its form: "Lutjanus fulvus", "Scaridae"."""
    parts = name.split()
    if len(parts) == 1:
        return re.fullmatch(r"[A-Z][a-z]+(idae|inae|aceae)", name) is not None
    if len(parts) != 2 or re.fullmatch(r"[A-Z][a-z]+", parts[0]) is None or re.fullmatch(r"[a-z]+", parts[1]) is None:
        return False
    if parts[1] in _COMMON_NOUNS:
        return False
    return bool(_LATIN_EPITHET.fullmatch(parts[1]) or _LATIN_GENUS.fullmatch(parts[0]))


_COMMON_NOUNS = _ORGANS | word_set(
    "tree bush crop weed cow cattle bull calf horse sheep goat pig chicken hen duck goose turkey buffalo fish "
    "carp bream butterfly moth beetle bug fly bee wasp ant pear apple melon grape date citrus cactus hibiscus "
    "iris mantis ibis octopus virus disease rust rot spot blight mildew seed species asparagus grass tomato "
    "potato bean"
)


def without_article(phrase: str) -> str:
    """A phrase without the "a", "an" or "the" in front of it."""
    return re.sub(r"^(a|an|the)\s+(?=\S)", "", phrase, flags=re.IGNORECASE)
