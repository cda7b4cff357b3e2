"""`tools/predict.py` and what it stands on: photos and class names in, the most probable names out."""

import csv
import io
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from colour_model import ColourModel, folder, photo, photos
from tiny import TOOLS, call

from agriclip_jax.data import splits
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import predict

CLASSES = {"red": ["a red one"], "green": ["a green one"], "blue": ["a blue one"], "yellow": ["a yellow one"]}


def test_each_photo_gets_its_k_most_probable_classes_in_order(tmp_path):
    path = folder(tmp_path / "x", {"a": [photo("green")], "b": [photo("yellow")]})
    found = predict.predict(ColourModel(), predict.find_photos([str(path)]), CLASSES, k=2)
    assert [p.best[0][0] for p in found] == ["green", "yellow"]
    assert all(len(p.best) == 2 and p.best[0][1] > p.best[1][1] for p in found)


def test_probabilities_are_the_softmax_of_scaled_cosines_over_all_classes(tmp_path):
    path = folder(tmp_path / "x", {"a": [photo("green")]})
    (found,) = predict.predict(ColourModel(), predict.find_photos([str(path)]), CLASSES, k=99)
    assert sum(p for _, p in found.best) == pytest.approx(1)
    model = ColourModel()
    from agriclip_jax.data import views

    image = model.embed_images(views.load_view(photo("green"), model.view)[None])[0].astype(np.float64)
    logits = model.logit_scale * model.embed_texts([p[0] for p in CLASSES.values()]) @ image
    odds = dict(zip(CLASSES, np.exp(logits) / np.exp(logits).sum(), strict=True))
    assert dict(found.best) == pytest.approx(odds, abs=1e-6)


def test_one_bad_photo_is_one_bad_row(tmp_path):
    path = folder(tmp_path / "x", {"a": [photo("green"), b"not a photo", photo("red")[:150]]})
    files = [*predict.find_photos([str(path)]), tmp_path / "gone.jpg"]
    found = predict.predict(ColourModel(), files, CLASSES, k=2)
    assert [bool(p.error) for p in found] == [False, True, True, True]
    rows = list(csv.DictReader(io.StringIO(predict.as_csv(found))))
    assert list(rows[0]) == ["file", "rank", "class", "probability", "error"]
    assert [(Path(r["file"]).name, r["rank"], r["class"]) for r in rows] == [
        ("000.jpg", "1", "green"),
        ("000.jpg", "2", rows[1]["class"]),
        ("001.jpg", "", ""),
        ("002.jpg", "", ""),
        ("gone.jpg", "", ""),
    ]
    assert "not an image" in rows[2]["error"] and "No such file" in rows[4]["error"]
    assert 0 <= float(rows[1]["probability"]) < float(rows[0]["probability"]) <= 1


def test_a_name_that_is_no_utf8_and_a_pipe_are_rows_too(tmp_path):
    good = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg"))
    good.write_bytes(photos("red", 1)[0])
    os.mkfifo(tmp_path / "pipe.jpg")
    found = predict.predict(ColourModel(), [good, tmp_path / "pipe.jpg"], CLASSES)
    assert found[1].error == "is no regular file"
    predict.as_csv(found).encode("utf-8")
    predict.show(found)


def test_csv_keeps_commas_quotes_and_line_breaks_in_names(tmp_path):
    odd = 'leaf, "spotted"\nor not'
    found = [predict.Prediction(Path("a,b.jpg"), ((odd, 0.5),))]
    (row,) = csv.DictReader(io.StringIO(predict.as_csv(found)))
    assert (row["file"], row["class"]) == ("a,b.jpg", odd)


def test_nothing_readable_is_an_error(tmp_path):
    path = folder(tmp_path / "x", {"a": [b"", b"x"]})
    with pytest.raises(UserError, match=r"none of 2 photos can be read; the first, .*000\.jpg: not an image"):
        predict.predict(ColourModel(), predict.find_photos([str(path)]), CLASSES)


def test_photos_are_found_by_file_folder_and_glob_each_once(tmp_path, monkeypatch):
    folder(tmp_path / "x", {"a": photos("red", 2), "b/deep": photos("red", 1), ".hidden": photos("red", 1)})
    (tmp_path / "x" / "notes.txt").write_text("no photo")
    (tmp_path / "x" / "UPPER.JPG").write_bytes(photo("red"))
    monkeypatch.chdir(tmp_path)
    found = predict.find_photos(["x"])
    assert list(map(str, found)) == ["x/UPPER.JPG", "x/a/000.jpg", "x/a/001.jpg", "x/b/deep/000.jpg"]
    assert predict.find_photos(["x/*/*.jpg", "x/a", "x/b"]) == [Path(p) for p in map(str, found[1:])]
    assert predict.find_photos(["x/notes.txt"]) == [Path("x/notes.txt")], "a file that is named shows as a bad row"
    assert predict.find_photos(["x/gone.jpg", "x/a/000.jpg"])[0] == Path("x/gone.jpg")


@pytest.mark.parametrize("asked", [["nothing/"], ["no/*.jpg"], ["gone.jpg", "gone2.jpg"], ["empty"]])
def test_no_photo_at_all_is_one_clear_line(tmp_path, monkeypatch, asked):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no photo matches .*; give files, folders or quoted globs"):
        predict.find_photos(asked)


def test_classes_come_from_commas_or_from_a_file_with_one_a_line(tmp_path):
    by_comma = predict.given_classes("red apple, oak leaf ,red apple,")
    assert list(by_comma) == ["red apple", "oak leaf"]
    assert by_comma["oak leaf"][0] == "a photo of an oak leaf."
    listed = tmp_path / "classes.txt"
    listed.write_text("\ufeffred apple\n\noak leaf, young\n", encoding="utf-8")
    assert list(predict.given_classes(str(listed))) == ["red apple", "oak leaf, young"]
    assert predict.given_classes("healthy,rust")["rust"][0] == "a photo of rust."


@pytest.mark.parametrize("text", ["one", "", " , ", "a,a"])
def test_fewer_than_two_classes_leave_nothing_to_choose(text):
    with pytest.raises(UserError, match="give two or more to choose from"):
        predict.given_classes(text)


def test_a_run_knows_its_classes_and_shared_ones_come_once():
    def known(dataset, name):
        return {"dataset": dataset, "domain": "crop", "class_key": name, "class_name": name}

    classes = predict.trained_classes(
        [
            known("a", "oak leaf"),
            known("b", "Oak  leaf"),
            known("banana_leaf", "healthy"),
            known("corn_leaf", "healthy"),
        ]
    )
    assert list(classes) == ["oak leaf", "a healthy banana leaf", "a healthy corn leaf"]
    with pytest.raises(UserError, match=r"no classes\.json .*--cls"):
        predict.trained_classes([])


@pytest.mark.parametrize(
    "tool", ["predict.py", "zeroshot.py", "retrieval.py", "probe.py", "evaluate.py", "localize.py"]
)
def test_help_answers_at_once_and_without_jax(tool):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        shown = subprocess.run([sys.executable, TOOLS / tool, "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - began)
    assert shown.returncode == 0 and "--ckpt" in shown.stdout
    assert min(times) < 0.5
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", TOOLS / tool, "--help"], capture_output=True, text=True
    ).stderr
    assert "argparse" in loaded and "jax" not in loaded.replace("agriclip_jax", "")


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("predict.py", ["--ckpt=missing", "{x}"], "missing is not the workdir of a run"),
        ("predict.py", ["--ckpt=missing", "{x}", "--use=pupil"], "'pupil' is neither student nor teacher"),
        ("predict.py", ["--ckpt=missing", "nothing-*.jpg"], "no photo matches nothing-*.jpg"),
        ("predict.py", ["--ckpt=missing", "{x}", "--cls=one"], "give two or more"),
        ("predict.py", ["--ckpt=missing", "{x}", "--k=0"], "--k=0: give 1 or more"),
        ("predict.py", ["--ckpt=missing", "{x}", "--output={x}"], "is a folder; name a file"),
        ("zeroshot.py", ["--ckpt=missing", "--tasks={x}"], "missing is not the workdir of a run"),
        ("zeroshot.py", ["--ckpt=missing", "--tasks={x}", "--use=pupil"], "'pupil' is neither student nor teacher"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, tool, arguments, message):
    folder(tmp_path / "x", {"red": photos("red", 1)})
    monkeypatch.setattr(sys, "argv", [tool, *(argument.format(x=tmp_path / "x") for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.out == ""
    (line,) = shown.err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_predict_answers_from_a_checkpoint_with_the_runs_own_classes(run, monkeypatch, capsys):
    out = run / "x.csv"
    (run / "apples" / "bad.jpg").write_bytes(b"no photo")
    status, shown = call(
        monkeypatch, capsys, "predict.py", f"--ckpt={run / 'workdir'}", run / "apples", "--k=2", f"--output={out}"
    )
    assert status == 0 and "wrote 30 photos" in shown.out and "1 of 31 photos cannot be read" in shown.err
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert len(rows) == 61 and {row["class"] for row in rows} == {"red apple", "green apple", ""}
    good = [float(row["probability"]) for row in rows if row["probability"]]
    assert np.add.reduceat(good, range(0, 60, 2)) == pytest.approx(1, abs=2e-6)


def test_a_build_asks_a_checkpoint_what_agrees_with_its_captions(run, tmp_path, monkeypatch, capsys):
    from agriclip_jax import inference
    from agriclip_jax.data import captions, records
    from agriclip_jax.data.views import load_view

    model = inference.load(run / "workdir")
    texts = [text for text, _ in captions.captions("red apple", "other", "apples")]
    images = [path.read_bytes() for path in sorted((run / "apples" / "red_apple").iterdir())]
    views = np.stack([load_view(image, model.view) for image in images])
    agreement = (model.embed_images(views) @ model.embed_texts(texts).T).max(axis=1)
    least = float(np.sort(agreement)[7:9].mean())
    out, source = tmp_path / "alive", f"--source={run / 'apples' / 'red*'}"
    arguments = (source, f"--out={out}", f"--ckpt={run / 'workdir'}")
    status, shown = call(monkeypatch, capsys, "build_alive.py", *arguments, f"--min_agreement={least}")
    assert status == 0, shown.err
    alive = records.Alive.open(out)
    kept = {row["image"] for split in alive.splits for row in alive.source(split)}
    assert kept == {image for image, cosine in zip(images, agreement, strict=True) if cosine >= least}
    status, shown = call(monkeypatch, capsys, "build_alive.py", *arguments, "--min_agreement=2", "--overwrite")
    assert status == 2 and "no photo to keep" in shown.err and "its similarity to its text is" in shown.err
    assert len(records.Alive.open(out).splits) == len(alive.splits)  # what was there stays


def test_zeroshot_keeps_its_results_in_the_workdir_unless_told_where(run, monkeypatch, capsys):
    status, shown = call(monkeypatch, capsys, "zeroshot.py", f"--ckpt={run / 'workdir'}", f"--tasks={run / 'alive'}")
    assert status == 0 and f"wrote {run / 'workdir' / 'zeroshot-alive.json'}" in shown.out.replace("\n", "")
    assert json.loads((run / "workdir" / "zeroshot-alive.json").read_text(encoding="utf-8"))["results"]


@pytest.mark.parametrize(
    ("step", "message"), [("bst", "holds no checkpoint of step bst; it has: 0"), ("best", "was never scored")]
)
def test_a_step_that_is_not_there_is_one_line(run, monkeypatch, capsys, step, message):
    photo_ = run / "apples" / "red_apple" / "000.jpg"
    status, shown = call(monkeypatch, capsys, "predict.py", f"--ckpt={run / 'workdir'}", photo_, f"--step={step}")
    assert status == 2 and message in shown.err and shown.err.count("\n") == 1


def test_predict_prints_a_table_for_classes_the_user_names(run, monkeypatch, capsys):
    photo_ = run / "apples" / "red_apple" / "000.jpg"
    status, shown = call(monkeypatch, capsys, "predict.py", f"--ckpt={run / 'workdir'}", photo_, "--cls=sun,[moon]")
    assert status == 0 and "sun" in shown.out and "[moon]" in shown.out and "%" in shown.out


@pytest.mark.parametrize("use", ["student", "teacher"])
def test_zeroshot_prints_the_table_and_writes_what_the_library_computes(run, monkeypatch, capsys, use):
    from agriclip_jax import inference
    from agriclip_jax.evaluate import tasks, zeroshot

    out = run / f"{use}.json"
    status, shown = call(
        monkeypatch,
        capsys,
        "zeroshot.py",
        f"--ckpt={run / 'workdir'}",
        f"--tasks={run / 'alive'}",
        f"--use={use}",
        "--template=one {}",
        f"--out={out}",
    )
    assert status == 0 and "mean, in-domain (1)" in shown.out and f"step 0, {use}" in shown.out
    file = json.loads(out.read_text(encoding="utf-8"))
    model = inference.load(run / "workdir", use=use)
    (expected,) = zeroshot.evaluate(
        model, tasks.load_tasks(str(run / "alive"), templates=["one {}"], seen={"apples": splits.SHARES})
    )
    assert file["results"][0]["predicted"] == expected.answers.predicted.tolist()
    assert file["results"][0]["templates"] == ["one {}"] and file["checkpoint"]["use"] == use
