"""The floors hold, the loop stays short, and nothing heavy loads before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = sorted(p.name for p in (ROOT / "tools").glob("*.py"))


def test_every_file_imports_only_from_floors_below_its_own():
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:]


def test_the_linter_sees_a_planted_violation(tmp_path):
    """Otherwise a contract that checks nothing would pass too."""
    import shutil

    shutil.copytree(ROOT / "agriclip_jax", tmp_path / "agriclip_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "agriclip_jax" / "losses" / "distill.py").open("a", encoding="utf-8") as file:
        file.write("\nfrom agriclip_jax.data import views\n")
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0 and "agriclip_jax.losses.distill" in run.stdout


def test_the_loop_is_at_most_300_lines():
    assert len((ROOT / "agriclip_jax" / "train.py").read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("tool", TOOLS)
def test_help_of_every_tool_answers_without_jax(tool):
    check = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'jax', 'flax', 'tensorflow_datasets', 'matplotlib', 'grain'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", check, f"tools/{tool}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--" in run.stdout


def test_help_of_the_main_command_answers_without_jax():
    check = (
        "import sys; from agriclip_jax import main\n"
        "try: main.run(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True).returncode == 0
