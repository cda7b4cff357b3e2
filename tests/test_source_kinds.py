"""Each kind of source, in and out: what people have, and in what state it reaches us."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sources import TREE, pack_tar, pack_zip, photo, plant

from agriclip_jax.data import records, taxonomy
from agriclip_jax.data.sources import KINDS, find, table
from agriclip_jax.data.sources.inaturalist import taxon_of
from agriclip_jax.data.survey import Problem, survey
from agriclip_jax.errors import UserError

PHOTOS = {f"img/{n}.jpg": photo(n) for n in range(4)}
WORDS = ("rust on a leaf", "a healthy leaf", "a leaf with blight", "another leaf")


def look(text, **options):
    return survey(find([str(text)]), ratios={"train": 100}, **options)


def given_texts(example) -> tuple[str, ...]:
    """The captions that a photo came with."""
    return tuple(text for text, kind in zip(example.captions, example.caption_kinds, strict=True) if kind == "given")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ---- tables ----------------------------------------------------------------------------------------------------------

HEADERS = {
    "open_clip": ("\t", ("filepath", "title")),
    "csv": (",", ("image", "caption")),
    "semicolons": (";", ("URL", "Text")),
    "bars, another order": ("|", ("caption", "filepath")),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_table_gives_images_with_their_captions(tmp_path, name):
    separator, columns = HEADERS[name]
    plant(tmp_path, PHOTOS)
    cells = [
        dict(zip(columns, pair if columns[0] != "caption" else pair[::-1], strict=True))
        for pair in zip(PHOTOS, WORDS, strict=True)
    ]
    lines = [separator.join(columns), *(separator.join(row[column] for column in columns) for row in cells)]
    found = look(write(tmp_path / "pairs.csv", "\n".join(lines)))
    assert {e.image: given_texts(e) for e in found.examples()} == {
        data: (text,) for data, text in zip(PHOTOS.values(), WORDS, strict=True)
    }
    assert {(e.class_name, e.class_key) for e in found.examples()} == {("", "")}


def test_a_table_with_labels_gives_classes_with_all_their_captions(tmp_path):
    plant(tmp_path, PHOTOS)
    rows = [f"img/{n}.jpg,{'leaf_rust' if n % 2 else 'scab'},{WORDS[n]}" for n in range(4)]
    found = look(write(tmp_path / "pairs.csv", "\n".join(["filepath,label,caption", *rows])))
    assert found.datasets["pairs"].classes == {"leaf_rust": "leaf rust", "scab": "scab"}
    for example in found.examples():
        assert set(example.caption_kinds) >= {"template", "given"}


def test_without_captions_and_labels_the_folder_is_the_class(tmp_path):
    plant(tmp_path, TREE)
    found = look(write(tmp_path / "list.csv", "\n".join(["filepath", *TREE])))
    assert list(found.datasets["list"].classes) == ["Blight", "healthy", "rust"]


def test_columns_can_be_told_and_a_missing_one_is_a_line_with_those_found(tmp_path):
    plant(tmp_path, PHOTOS)
    path = write(tmp_path / "odd.csv", "photo,words,kind\nimg/0.jpg,a leaf,rust\n")
    with pytest.raises(UserError, match=r"odd\.csv: no column of images .* columns: 'photo', 'words', 'kind'; name it"):
        look(path)
    (example,) = look(f"csv:{path}?image=photo&caption=words&label=kind").examples()
    assert example.class_key == "rust" and given_texts(example) == ("a leaf",)
    with pytest.raises(UserError, match=r"there is no column 'fotos'; did you mean 'photo'"):
        look(f"{path}?image=fotos")
    with pytest.raises(UserError, match=r"unknown option 'imge' of a table source; did you mean 'image'"):
        look(f"{path}?imge=photo")


def test_broken_rows_are_listed_by_line_and_cost_only_themselves(tmp_path):
    plant(tmp_path, PHOTOS)
    rows = [
        "filepath,caption",
        'img/0.jpg,"a leaf, with rust"',
        "img/1.jpg",
        'img/1.jpg,"a quote that is never closed',
        '"img/2.jpg,""a whole row, quoted"""',
        ",no image",
        "../outside.jpg,climbs",
        "/etc/hostname,climbs too",
        "http://somewhere/3.jpg,far away",
        "img/none.jpg,not there",
        "img/3.jpg,the last one",
    ]
    found = look(write(tmp_path / "pairs.csv", "\n".join(rows)))
    assert {e.source: given_texts(e) for e in found.examples()} == {
        "pairs/img/0.jpg": ("a leaf, with rust",),
        "pairs/img/1.jpg": ("a quote that is never closed",),
        "pairs/img/2.jpg": ("a whole row, quoted",),
        "pairs/img/3.jpg": ("the last one",),
    }
    told = dict(found.problems)
    assert told["pairs/pairs.csv:3"] == "has 1 cells where the table has 2 columns"
    assert told["pairs/pairs.csv:6"] == "names no image"
    for line in (7, 8):
        assert "lies outside of the table's folder; allow it with ?root=FOLDER" in told[f"pairs/pairs.csv:{line}"]
    assert "web address; download the images first" in told["pairs/pairs.csv:9"]
    assert told["pairs/img/none.jpg"].startswith("cannot be read: ") and len(told) == 6


def test_another_folder_of_images_can_be_told(tmp_path):
    plant(tmp_path / "photos", PHOTOS)
    path = write(tmp_path / "lists" / "pairs.tsv", "filepath\ttitle\nimg/0.jpg\ta leaf\n")
    (example,) = look(f"{path}?root={tmp_path / 'photos'}").examples()
    assert example.image == PHOTOS["img/0.jpg"]
    with pytest.raises(UserError, match=r"\?root=.*none: there is no such folder"):
        look(f"{path}?root={tmp_path / 'none'}")


def test_latin_1_is_read_and_so_are_names_in_any_script(tmp_path):
    plant(tmp_path, {"img/é.jpg": photo(1), "img/豆.jpg": photo(2)})
    (tmp_path / "pairs.csv").write_bytes(
        "filepath,caption\nimg/豆.jpg,さび病の葉\n".encode() + b"img/" + "é".encode() + b".jpg,caf\xe9 leaf\n"
    )
    assert {given_texts(e) for e in look(tmp_path / "pairs.csv").examples()} == {("さび病の葉",), ("café leaf",)}


def test_a_first_line_without_end_is_one_line_of_error(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv has a first line that names no columns"):
        look(write(tmp_path / "t.csv", "a" * 200_000 + ",b\n1,2\n"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(["pairs.csv", "pairs.tsv", "pairs.jsonl"]))
def test_no_bytes_break_a_table(tmp_path, noise, name):
    path = tmp_path / name
    path.write_bytes(b"filepath,caption\n" * (len(noise) % 2) + noise)
    try:
        things = list(find([str(path)])[0].items())
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(thing.path, str) for thing in things)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"))] * 2)))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("csv") / "t.csv"
    rows = [row for row in rows if row[0] and sum(cell.count("\n") for cell in row) < table.MOST_LINES]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("filepath", "caption"), *rows])
    read = [tuple(row.values()) for _, row in table.rows(path) if isinstance(row, dict)]
    assert read == rows


def test_the_objects_of_json_lines_may_have_different_keys(tmp_path):
    plant(tmp_path, PHOTOS)
    lines = [
        {"file": "img/0.jpg"},
        {"image": "img/1.jpg", "text": "a leaf"},
        {"text": "no image"},
        {"image": "img/2.jpg", "label": 3},
        {"image": "img/3.jpg", "text": "half an emoji \ud83c"},
    ]
    found = look(write(tmp_path / "web.jsonl", "\n".join(map(json.dumps, lines))))
    assert {e.source: (e.class_key, given_texts(e)) for e in found.examples()} == {
        "web/img/1.jpg": ("", ("a leaf",)),
        "web/img/2.jpg": ("3", ()),
        "web/img/3.jpg": ("", ("half an emoji \N{REPLACEMENT CHARACTER}",)),
    }
    assert dict(found.problems) == {"web/web.jsonl:3": "names no image"}


def test_an_image_in_several_rows_has_all_their_captions(tmp_path):
    plant(tmp_path, PHOTOS)
    rows = ["img/0.jpg,one", "img/1.jpg,other", "img/0.jpg,two", "img/0.jpg,three"]
    found = look(write(tmp_path / "coco.csv", "\n".join(["filepath,caption", *rows])))
    assert {given_texts(e) for e in found.examples()} == {("one", "two", "three"), ("other",)}


def test_metadata_of_one_class_folder_does_not_make_a_tree_a_table(tmp_path):
    plant(tmp_path / "bean", TREE)
    write(tmp_path / "bean" / "rust" / "metadata.csv", "file_name,text\n1.jpg,a leaf\n")
    write(tmp_path / "pea" / "metadata.csv", "camera,day\nx,1\n")
    plant(tmp_path / "pea", TREE)
    for name in ("bean", "pea"):
        assert list(look(tmp_path / name).datasets[name].classes) == ["Blight", "healthy", "rust"]


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_hugging_faces_metadata_is_found_in_a_folder_or_its_splits(tmp_path, ending, splits):
    for number, split in enumerate(splits):
        rows = [{"file_name": f"{n}.jpg", "text": WORDS[n]} for n in (2 * number, 2 * number + 1)]
        plant(tmp_path / "leaves", {split + row["file_name"]: photo(int(row["file_name"][0])) for row in rows})
        path = tmp_path / "leaves" / split / f"metadata.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif ending == "jsonl":
            write(path, "\n".join(map(json.dumps, rows)))
        else:
            write(path, "\n".join(["file_name,text", *(",".join(row.values()) for row in rows)]))
    found = look(tmp_path / "leaves")
    assert list(found.datasets) == ["leaves"]
    assert {e.image: given_texts(e) for e in found.examples()} == {
        photo(n): (WORDS[n],) for n in range(2 * len(splits))
    }


def parquet(path: Path, rows: list[dict], names: list[str] | None = None) -> Path:
    written = pa.Table.from_pylist(rows)
    if names:
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        written = written.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(written, path, row_group_size=2)
    return path


def test_parquet_with_image_bytes_and_class_names(tmp_path):
    rows = [{"image": {"bytes": photo(n), "path": None}, "label": n % 2} for n in range(7)]
    for part, some in (("a", rows[:5]), ("b", rows[5:])):
        parquet(tmp_path / "beans" / "data" / f"train-{part}.parquet", some, ["angular_leaf_spot", "healthy"])
    found = look(tmp_path / "beans")
    assert found.datasets["beans"].classes == {"angular_leaf_spot": "angular leaf spot", "healthy": "healthy"}
    assert sorted((e.image, e.class_key) for e in found.examples()) == sorted(
        (photo(n), ["angular_leaf_spot", "healthy"][n % 2]) for n in range(7)
    )


def test_parquet_of_plain_bytes_with_captions_and_a_row_without_image(tmp_path):
    rows = [{"jpg": photo(n) if n else None, "caption": WORDS[n]} for n in range(3)]
    found = look(parquet(tmp_path / "web.parquet", rows))
    assert {e.image: given_texts(e) for e in found.examples()} == {photo(n): (WORDS[n],) for n in (1, 2)}
    assert found.problems == [Problem("web/web.parquet:0", "holds no image")]


def test_texts_of_a_parquet_file_that_are_none_are_one_line(tmp_path):
    bad = pa.array([b"a \xff leaf"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"jpg": [photo()], "caption": bad}), tmp_path / "web.parquet")
    with pytest.raises(UserError, match=r"web\.parquet cannot be read as Parquet"):
        look(tmp_path / "web.parquet")


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = parquet(tmp_path / "web.parquet", [{"jpg": photo(n), "caption": "a leaf"} for n in range(20)])
    whole = path.read_bytes()
    for harm in (whole[:100], whole[:-8], whole[: len(whole) // 2] + whole[-200:], b"PAR1", b""):
        path.write_bytes(harm)
        with pytest.raises(UserError, match=r"web\.parquet cannot be read as Parquet|no photo to keep"):
            look(path)


# ---- samples ---------------------------------------------------------------------------------------------------------


def shard(first: int, count: int) -> dict[str, bytes]:
    files = {}
    for n in range(first, first + count):
        files[f"{n:05}.jpg"] = photo(n)
        files[f"{n:05}.txt"] = WORDS[n % 4].encode()
        files[f"{n:05}.json"] = json.dumps({"key": f"{n:05}", "status": "success", "caption": WORDS[n % 4]}).encode()
    return files


@pytest.mark.parametrize("ending, mode", [("tar", "w"), ("tar.gz", "w:gz")])
def test_webdataset_shards_are_one_dataset(tmp_path, ending, mode):
    (tmp_path / "web").mkdir()
    for number in (0, 1):
        pack_tar(tmp_path / "web" / f"{number:05}.{ending}", shard(3 * number, 3), mode)
    for text in (tmp_path / "web", f"webdataset:{tmp_path / 'web'}/*.{ending}"):
        found = look(text)
        assert list(found.datasets) == ["web"]
        assert {e.image: given_texts(e) for e in found.examples()} == {photo(n): (WORDS[n % 4],) for n in range(6)}


def test_a_webdataset_of_classes(tmp_path):
    files = {}
    for n in range(4):
        files |= {f"{n}.png": photo(n, "PNG"), f"{n}.cls": str(n % 2).encode()}
    found = look(pack_tar(tmp_path / "leaves.tar", files, "w"))
    assert list(found.datasets["leaves"].classes) == ["0", "1"] and len(list(found.examples())) == 4


def test_what_img2dataset_wrote_as_files_or_tars(tmp_path):
    folder = tmp_path / "files"
    plant(folder / "00000", shard(0, 3))
    write(folder / "00000_stats.json", '{"count": 3}')
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["a"]}), folder / "00000.parquet")
    (tmp_path / "tars").mkdir()
    pack_tar(tmp_path / "tars" / "00000.tar", shard(0, 3), "w")
    write(tmp_path / "tars" / "00000_stats.json", '{"count": 3}')
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["a"]}), tmp_path / "tars" / "00000.parquet")
    for name in ("files", "tars"):
        found = look(tmp_path / name)
        assert {e.image: given_texts(e) for e in found.examples()} == {photo(n): (WORDS[n],) for n in range(3)}


def test_notes_beside_photos_do_not_make_a_class_tree_a_set_of_samples(tmp_path):
    notes = {name.replace(".jpg", ".txt"): b"0 0.5 0.5 1 1" for name in TREE}
    for path in (plant(tmp_path / "bean", TREE | notes), pack_tar(tmp_path / "pea.tar", TREE | notes, "w")):
        assert list(look(path).datasets[path.stem].classes) == ["Blight", "healthy", "rust"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([".json", ".txt", ".cls"]))
def test_no_text_breaks_a_sample(tmp_path, noise, ending):
    path = pack_tar(tmp_path / "web.tar", {"0.jpg": photo(), f"0{ending}": noise, "1.jpg": photo()}, "w")
    items = list(KINDS["webdataset"].open([path], {})[0].items())
    assert [item.path for item in items] == ["0.jpg", "1.jpg"]
    for text in (*items[0].captions, items[0].class_key):
        text.encode("utf-8")


# ---- TFDS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset that TFDS itself prepared."""
    import tensorflow_datasets as tfds

    class LeafTest(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["leaf_rust", "healthy"])
            features = {"image": tfds.features.Image(), "label": label, "caption": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, downloads):
            return {"train": self._generate_examples(range(4)), "test": self._generate_examples(range(4, 6))}

        def _generate_examples(self, numbers):
            for n in numbers:
                yield n, {"image": io.BytesIO(photo(n, "PNG")), "label": n % 2, "caption": f"leaf {n}"}

    data_dir = tmp_path_factory.mktemp("tfds")
    builder = LeafTest(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return data_dir, Path(builder.data_path)


def test_a_tfds_dataset_by_folder_and_by_name(prepared):
    data_dir, folder = prepared
    for text in (folder, f"tfds:{folder}", f"tfds:leaf_test?data_dir={data_dir}"):
        found = look(text)
        assert found.datasets["leaf_test"].classes == {"healthy": "healthy", "leaf_rust": "leaf rust"}
        assert {e.image: (e.class_key, given_texts(e)) for e in found.examples()} == {
            photo(n, "PNG"): (["leaf_rust", "healthy"][n % 2], (f"leaf {n}",)) for n in range(6)
        }


def test_a_tfds_name_is_prepared_when_it_is_not_there(prepared, tmp_path):
    assert len(list(look(f"tfds:leaf_test?data_dir={tmp_path}").examples())) == 6
    with pytest.raises(UserError, match=r"tfds:no_such_set cannot be prepared without TensorFlow \(.*no_such_set"):
        look(f"tfds:no_such_set?data_dir={tmp_path}")


def test_an_alive_folder_is_a_source_of_its_datasets_again(tmp_path):
    plant(tmp_path, PHOTOS)
    write(tmp_path / "web.csv", "filepath,caption\nimg/0.jpg,a leaf in the sun\n")
    record = json.dumps({"name": "pea", "domain": "crop", "classes": {"rust": "pea leaf with rust"}, "license": "CC0"})
    plant(tmp_path / "pea", TREE | {"dataset.json": record.encode()})
    first = survey(find([str(tmp_path / "web.csv"), str(tmp_path / "pea")]))
    records.write(tmp_path / "alive", first.splits(), name="alive", description="x", datasets=first.datasets)
    again = survey(find([str(tmp_path / "alive")]))
    assert again.datasets == first.datasets and again.counts == first.counts
    assert {e.source: (e.image, e.captions) for e in again.examples()} == {
        e.source: (e.image, e.captions) for e in first.examples()
    }
    assert {text for e in again.examples() for text in given_texts(e)} == {"a leaf in the sun"}
    assert len(list(look(f"tfds:{tmp_path / 'alive'}").examples())) == 10  # and a TFDS dataset like others


def test_a_damaged_tfds_folder_is_one_line(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared[1], tmp_path / "leaf")
    for shard_file in (tmp_path / "leaf").glob("*train*array_record*"):
        shard_file.write_bytes(shard_file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        look(tmp_path / "leaf")


# ---- iNaturalist -----------------------------------------------------------------------------------------------------

CARP = "00042_Animalia_Chordata_Actinopterygii_Cypriniformes_Cyprinidae_Cyprinus_carpio"
WORM = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris"


@pytest.mark.parametrize("packed", [False, True])
def test_an_inaturalist_tree_tells_its_taxonomy(tmp_path, packed):
    files = {f"train/{key}/{n}.jpg": photo(n) for key in (CARP, WORM) for n in (1, 2)}
    path = pack_zip(tmp_path / "inat.zip", files) if packed else plant(tmp_path / "inat", files)
    found = look(path)
    record = found.datasets["inat"]
    assert record.classes == {CARP: "Cyprinus carpio", WORM: "Lumbricus terrestris"}
    assert record.taxonomy[CARP]["family"] == "Cyprinidae" and found.notes == []
    texts = dict(next(zip(e.captions, e.caption_kinds, strict=True) for e in found.examples() if e.class_key == CARP))
    assert texts["a photo of Animalia Chordata Actinopterygii Cypriniformes Cyprinidae Cyprinus carpio."] == "taxonomy"


def test_a_photo_named_like_a_taxon_does_not_make_a_tree_inaturalists(tmp_path):
    plant(tmp_path / "bean", {"rust/2023_06_12_field_plot_3_cam_7.jpg": photo(), "healthy/1.jpg": photo(1)})
    record = json.dumps([{"name": "bean", "license": "CC0", "domain": "crop"}])
    write(tmp_path / "dataset.json", record)
    assert look(tmp_path / "bean").datasets["bean"].licence == "CC0"


def test_what_the_user_says_of_a_source_adds_to_what_it_says_itself(tmp_path):
    plant(tmp_path / "inat", {f"{CARP}/1.jpg": photo()})
    record = look(tmp_path / "inat", metadata={"inat": {"name": "inat", "license": "CC0"}}).datasets["inat"]
    assert record.licence == "CC0" and record.taxonomy[CARP]["genus"] == "Cyprinus"
    write(tmp_path / "dataset.json", json.dumps({"name": "inat", "domain": "fish"}))
    assert look(tmp_path / "inat").datasets["inat"].domain == "fish"


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_common_names_come_from_a_categories_file(tmp_path, kind):
    plant(tmp_path / "inat", {f"{CARP}/1.jpg": photo()})
    row = {
        **taxon_of(CARP),
        **{"id": 42, "common_name": "Common Carp", "supercategory": "Ray-finned Fishes", "specific_epithet": "carpio"},
    }
    row["name"] = row.pop("species")
    text = (
        json.dumps({"categories": [row]}) if kind == "json" else f"{','.join(row)}\n{','.join(map(str, row.values()))}"
    )
    path = write(tmp_path / f"categories.{kind}", text)
    found = look(f"inaturalist:{tmp_path / 'inat'}?categories={path}")
    assert found.datasets["inat"].classes == {CARP: "Common Carp (Cyprinus carpio)"}
    (example,) = found.examples()
    assert "Common Carp Ray-finned Fishes Cyprinus" in example.captions  # LiT-iNat's label
    assert "a photo of Cyprinus carpio with common name Common Carp." in example.captions  # BioCLIP's


def test_taxonomy_from_a_metadata_record_serves_any_tree(tmp_path):
    record = {"name": "pond", "domain": "fish", "taxonomy": {"carp": {**taxon_of(CARP), "common_name": "common carp"}}}
    plant(tmp_path / "pond", {"carp/1.jpg": photo(), "dataset.json": json.dumps(record).encode()})
    (example,) = look(tmp_path / "pond").examples()
    assert example.class_name == "common carp (Cyprinus carpio)" and "taxonomy" in example.caption_kinds


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*taxonomy.RANKS, "common_name", "supercategory"]), st.text(max_size=20)))
def test_any_part_of_a_lineage_makes_captions_without_gaps_or_repeats(taxon):
    texts = taxonomy.captions(taxon)
    assert len(texts) == len(set(texts)) and all(texts)
    if any(taxon.get(rank, "") for rank in taxonomy.RANKS):
        assert texts


@pytest.mark.parametrize("known", [{"genus": "Cyprinus"}, {"family": "Cyprinidae"}, taxon_of(CARP), {"order": "Aves"}])
def test_no_caption_of_a_lineage_says_a_name_twice(known):
    for text in taxonomy.captions({**known, "supercategory": known.get("kingdom", "")}):
        words = text.rstrip(".").split()
        assert len(words) == len(set(words)) or words.count("a") > 1


# ---- what a user types -----------------------------------------------------------------------------------------------


def test_an_unknown_kind_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"--source=webdatset:x: unknown kind 'webdatset'; did you mean 'webdataset'"):
        find(["webdatset:x"])
    with pytest.raises(UserError, match=r"'image=' is not key=value"):
        find([f"{write(tmp_path / 'a.csv', 'image')}?image="])
    with pytest.raises(UserError, match=r"holds no samples"):
        find([f"webdataset:{write(tmp_path / 'a.txt', 'x')}"])
    with pytest.raises(UserError, match=r"is no folder, \.zip or \.tar"):
        find([f"zip:{tmp_path / 'a.csv'}"])
    with pytest.raises(UserError, match=r"is not the folder of a prepared TFDS dataset"):
        find([f"tfds:{tmp_path}"])


def test_a_path_that_holds_signs_of_the_syntax_is_still_a_path(tmp_path, monkeypatch):
    odd = plant(tmp_path / "a:b?c=d", TREE)
    assert list(look(odd).datasets) == ["a:b?c=d"]
    monkeypatch.chdir(tmp_path)
    assert list(look("a:b?c=d").datasets) == ["a:b?c=d"]


def test_a_tar_of_many_members_is_listed_without_keeping_them(tmp_path):
    path = pack_tar(tmp_path / "bean.tar", {f"rust/{n}.jpg": photo(1) for n in range(300)}, "w")
    (source,) = find([str(path)])
    with tarfile.open(path) as archive:
        offsets = [[member.offset_data, member.size] for member in archive.getmembers()]
    assert [item.place for item in source.items()] == offsets
