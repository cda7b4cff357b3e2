"""The notebook: saved clean, says what is missing, and runs from top to bottom on a CPU."""

import ast
import html
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import tiny

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "agriclip_tpu_colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def sources(notebook):
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def test_it_is_saved_clean_and_asks_colab_for_a_tpu(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert notebook.metadata.accelerator == "TPU"


def test_every_code_cell_is_plain_python_and_stands_under_a_text(notebook):
    assert all(ast.parse(source).body for source in sources(notebook).values())
    assert [cell.cell_type for cell in notebook.cells[:2]] == ["markdown", "markdown"]


def test_settings_are_plain_values_that_a_colab_form_can_hold(notebook):
    settings = ast.parse(sources(notebook)["parameters"]).body
    assert all(isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) for line in settings)


def test_where_nothing_is_installed_it_asks_for_the_repository(notebook, tmp_path):
    cells = sources(notebook)
    bare = [sys.executable, "-I", "-S", "-c", cells["parameters"] + "\n" + cells["install"]]  # without site-packages
    run = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and "agriclip_jax is not installed here: fill in REPOSITORY" in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_command_that_fails_stops_the_notebook(notebook, capsys):
    cells, names = sources(notebook), {}
    exec(cells["parameters"] + "\n" + cells["install"], names)
    assert names["ROOT"] == ROOT
    with pytest.raises(RuntimeError, match=r"ended with status 3; the lines above say why"):
        names["run"](sys.executable, "-c", "print('first'); raise SystemExit(3)")
    assert capsys.readouterr().out.endswith("first\n")


def test_without_photos_the_last_cells_say_so(notebook, capsys):
    cells, names = sources(notebook), {}
    exec("\n".join(cells[name] for name in ("parameters", "own-train", "own-predict")), names)
    said = capsys.readouterr().out
    assert "PHOTOS is empty: no photos of your own" in said and "NEW_PHOTOS is empty: no photos to name" in said


def plants(path):
    """plants.zip with two classes of drawn leaves, and new.jpg, one leaf more; returns both and the first class."""
    from agriclip_jax.data import corpus

    kinds = [kind for kind in corpus.KINDS if kind.domain == "crop"][:2]
    with zipfile.ZipFile(path / "plants.zip", "w") as archive:
        for kind in kinds:
            for i in range(20):
                archive.writestr(f"{kind.key}/{i}.jpg", corpus.example(kind, "train", i, size=32).image)
    (path / "new.jpg").write_bytes(corpus.example(kinds[0], "test", 0, size=32).image)
    return path / "plants.zip", path / "new.jpg", kinds[0]


def with_settings(notebook, **settings):
    """The notebook with other settings, in a cell after the one tagged `parameters`, as papermill does it."""
    at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return notebook


def shown(notebook, name, kind):
    """All outputs of a MIME type, or all printed text, of one cell."""
    outputs = next(cell for cell in notebook.cells if cell.id == name).outputs
    if kind == "printed":
        return "".join(output.text for output in outputs if output.output_type == "stream")
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_shows_a_table_and_pictures(notebook, corpus, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    archive, leaf, kind = plants(tmp_path)
    overrides = tiny.SMALL | {"data.path": str(corpus)}
    settings = {
        "STEPS": int(overrides.pop("total_steps")),
        "OVERRIDES": " ".join(f"--config.{key}={value}" for key, value in overrides.items()),
        "WORKDIR": "runs/small",
        "PHOTOS": str(archive),
        "NEW_PHOTOS": str(leaf),
    }
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    where = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(with_settings(notebook, **settings), timeout=600, resources=where).execute()

    assert "x cpu (cpu)\nOnly a CPU" in shown(done, "devices", "printed")
    assert len(shown(done, "classes", "image/png")) == 1
    (table,) = shown(done, "scores", "text/html")
    results = json.loads((tmp_path / "runs/small/zeroshot.json").read_text(encoding="utf-8"))["results"]
    assert len(results) >= 6
    for task in results:
        assert f">{task['dataset']}</td>" in table and f">{100 * task['metrics']['acc1']:.1f}</td>" in table
    (frame,) = shown(done, "report", "text/html")
    page = html.unescape(frame).replace('<base href="about:srcdoc">', "", 1)
    assert (tmp_path / "runs/small/report.html").read_text(encoding="utf-8") in page
    assert page.count("data:image/jpeg;base64,") >= 12
    own = shown(done, "own-train", "text/html")
    assert len(own) == 2 and ">plants</td>" in own[0] and "data:image/jpeg;base64," in own[1]
    assert "new.jpg" in shown(done, "own-predict", "printed") and kind.name in shown(done, "own-predict", "printed")
