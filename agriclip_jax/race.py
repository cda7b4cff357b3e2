"""A race of recipes: the same budget, several seeds, the same tasks; one small record for each run that finished.

Records are all that is needed to go on, on any machine, and to make the table. No device is held here: runs are the
commands that a user would give, one after the other.
"""

import hashlib
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agriclip_jax import config as configs
from agriclip_jax.comparison import race_plots, standings
from agriclip_jax.errors import RunFailure, UserError, near_misses
from agriclip_jax.evaluate import records, suite, zeroshot
from agriclip_jax.files import read_record, write_json
from agriclip_jax.objectives import has_teacher

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "configs" / "race.py"
VERSION = 1  # of what a record holds
SPEED_STEPS = 40  # of the short run by which seconds become steps


class Budget(NamedTuple):
    """How long each recipe may train: `amount` "steps", or "s" of the accelerator."""

    amount: int
    unit: str

    def __str__(self) -> str:
        return f"{self.amount}{self.unit}"


def budget(text: str) -> Budget:
    """Raises `UserError` for a text that is not like "4000steps" or "900s"."""
    found = re.fullmatch(standings.BUDGET, text)
    if not found:
        raise UserError(f"--budget={text}: give steps or seconds, such as 4000steps or 900s")
    return Budget(int(found[1]), found[2])


@dataclass(frozen=True)
class Entry:
    """A recipe in the race.

    Attributes:
      name: as given: a name in configs/race.py or FILE.py[:VARIANT]; then "+KEY=VALUE" for each key set for it alone;
        then "@teacher" where the teacher is the image tower.
      setting: a word for configs/race.py, such as "gpu"; not for other files.
      shared: dotted keys set for all recipes.
    """

    name: str
    setting: str
    shared: Mapping[str, str]

    @property
    def base(self) -> str:
        """The name without keys and teacher; raises UserError for one that is a key or a word."""
        base = self.trained.split("+")[0]
        if "=" in base and ".py" not in base:
            raise UserError(
                f"--recipes: {base!r} is no recipe; a key of one is NAME+KEY=VALUE, sizes are --setting=cpu|gpu"
            )
        return base

    @property
    def own(self) -> dict[str, str]:
        """The keys that the name sets."""
        return standings.own_keys(self.name)

    @property
    def given(self) -> dict[str, str]:
        """All keys that are set by hand."""
        return {**self.shared, **self.own}

    @property
    def use(self) -> str:
        """Whose image tower is measured."""
        return "teacher" if self.name.endswith(standings.TEACHER) else "student"

    @property
    def trained(self) -> str:
        """The name of what is trained: the same for student and teacher."""
        return self.name.removesuffix(standings.TEACHER)

    @property
    def spec(self) -> str:
        """Of the recipe, as `main` takes it."""
        return self.base if ".py" in self.base else f"{RECIPES}:{self.base},setting={self.setting}"

    @cached_property
    def plan(self) -> list[configs.Stage]:
        """Its stages; raises UserError as `configs.stages` does."""
        return configs.stages(self.spec, self.given)

    @cached_property
    def settings(self) -> list[Any]:
        """What of its stages' configurations decides its mathematics."""
        return [configs.decisive(stage.config.to_dict()) for stage in self.plan]

    @cached_property
    def content(self) -> list[list[str]]:
        """Fingerprints of what lies beside each stage's configuration, as it was when first asked."""
        return [_content(stage) for stage in self.plan]

    def keys(self, steps: Mapping[str, int]) -> dict[str, str]:
        """The keys that give each trained stage its steps."""
        prefix = {stage.name: f"stages.{stage.name}." if stage.name else "" for stage in self.plan}
        return {f"{prefix[name]}total_steps": str(count) for name, count in steps.items()}

    @property
    def training(self) -> list[str]:
        """The names of the stages that train; each gets an equal part of the budget."""
        return [stage.name for stage in self.plan if stage.config.stage == "train"]


@dataclass(frozen=True)
class Race:
    """What is raced, by what, and where things go.

    Attributes:
      suite: file of the evaluation suite.
      budget: of each run.
      out: folder of the runs.
      records: folder of the records.
      setting: a word of configs/race.py.
      keep: whether the runs stay when their record is written.
      say: called with each line a user should know.
    """

    suite: Path
    budget: Budget
    out: Path
    records: Path
    setting: str
    keep: bool
    say: Callable[[str], None]

    def file(self, entry: Entry, seed: int) -> Path:
        """Of the record of a run."""
        parts = [self.suite.stem, self.setting, _slug(entry.name), str(self.budget), f"seed{seed}"]
        return self.records / f"{'.'.join(parts)}.json"

    def _known(self, entry: Entry, seed: int) -> dict[str, Any]:
        """The record of a run, empty where it is not there."""
        file = self.file(entry, seed)
        record = standings.read_one(file) if file.is_file() else {}
        if record and record.get("key") != self._key(entry, seed):
            raise _other(file, entry)
        return record

    def _there(self, entry: Entry) -> list[Path]:
        """Records of an entry, of any budget and seed."""
        return sorted(self.records.glob(f"{self.suite.stem}.{self.setting}.{_slug(entry.name)}.*.json"))

    def run(self, entry: Entry, seed: int) -> dict[str, Any]:
        """The record of a run: read where it is there, else made.

        Raises:
          UserError: a recipe or suite cannot be read, the recipe refuses its data, or the record is of other things.
          RunFailure: a run failed.
        """
        file, identity = self.file(entry, seed), {"key": self._key(entry, seed), "settings": self._settings(entry)}
        if record := self._known(entry, seed):
            return record
        self.say(f"{entry.name}, seed {seed}, {self.budget}")
        steps = self._steps(entry)
        workdir = self._workdir(entry, seed)
        shared = self._shared(entry, steps, seed)
        for name, kept in shared.items():
            if kept.is_dir() and not (workdir / name).exists():
                _copy(kept, workdir / name)
        self._command("-m", "agriclip_jax.main", *_main(entry, workdir, steps, seed))
        if stopped := [stage.name for stage in entry.plan if not (workdir / stage.name / "report.html").is_file()]:
            raise RunFailure(f"{workdir / stopped[0]} was stopped; give the same command again to go on")
        for name, kept in shared.items():
            if not kept.exists():
                _copy(workdir / name, kept)
        final = workdir / entry.plan[-1].name
        self._command(
            str(ROOT / "tools" / "evaluate.py"),
            f"--suite={self.suite}",
            "--measures=zeroshot",
            f"--ckpt={final}",
            f"--use={entry.use}",
        )
        record = {**identity, **self._record(entry, seed, workdir, final)}
        write_json(file, record)
        return record

    def all(
        self,
        entries: Sequence[Entry],
        seeds: Sequence[int],
        compared: Sequence[str] = (),
        marked: Sequence[str] = (),
        along: str = "",
    ) -> None:
        """Every recipe with every seed, as far as their records are not there; seed after seed.

        Args:
          entries: what is raced.
          seeds: of each.
          compared: names that the tables need.
          marked: tasks that they mark.
          along: what their curves go along, as of `results.report`.

        Raises:
          UserError, RunFailure: as `run` does; before anything is trained where the suite, a task of it or a recipe
            cannot be read, a recipe is named twice, sets what the race does or has no teacher to measure, a name that
            is compared is neither raced nor has it a record, a record is not of this race, a marked task is none that
            the suite scores, or no curve can be drawn.
        """
        # What would end a race after hours is told now.
        tasks = suite.load(suite.read(self.suite, ("zeroshot",)), seen={})
        asked = [task.name for task in tasks if not zeroshot.cannot(task)] if marked else []
        if unknown := [task for task in marked if task not in asked]:
            near = near_misses(unknown[0], asked)
            raise UserError(f"--mark={unknown[0]}: {self.suite} has no such task that can be scored{near}")
        raced = [entry.name for entry in entries]
        if twice := [name for name in raced if raced.count(name) > 1]:
            raise UserError(f"--recipes: {twice[0]} is named twice")
        for entry in entries:
            if entry.use == "teacher" and not (entry.training and has_teacher(entry.plan[-1].config)):
                raise UserError(f"{entry.name}: {entry.trained} trains no teacher; leave out {standings.TEACHER}")
            for key in entry.given:
                if flag := {"seed": "--seeds", "total_steps": "--budget"}.get(key.rpartition(".")[2]):
                    raise UserError(f"{entry.name}: config.{key} is the race's own; give {flag}")
            self._key(entry, 0)
        also = [Entry(name, self.setting, entries[0].shared) for name in compared if name not in raced]
        for entry in also:
            if not any(f".{self.budget}." in file.name for file in self._there(entry)):
                raise UserError(
                    f"{entry.name} is what others are compared with, and is neither raced nor has it a record of "
                    f"{self.budget} in {self.records}; add it to --recipes, or name another by --baseline or --share_of"
                )
        for entry in (*entries, *also):
            for file in self._there(entry):
                if standings.read_one(file)["settings"] != self._settings(entry):
                    raise _other(file, entry)
        varied = {entry.given[along] for entry in (*entries, *also) if along in entry.given}
        if along not in ("", "trained") and len(varied) < 2:
            raise UserError(race_plots.NO_CURVE.format(along))
        for entry in entries:
            if not all(self._known(entry, seed) for seed in seeds):
                self._steps(entry)
        for seed in seeds:
            for entry in entries:
                self.run(entry, seed)
            for entry in () if self.keep else entries:
                shutil.rmtree(self._workdir(entry, seed), ignore_errors=True)

    def _shared(self, entry: Entry, steps: Mapping[str, int], seed: int) -> dict[str, Path]:
        """Where stages that other recipes may have alike are kept: all but the last, of those that train."""
        kept = {}
        for stage, settings, content in zip(entry.plan[:-1], entry.settings, entry.content, strict=False):
            if stage.config.stage == "train" and not any(str(v).startswith("stage:") for v in settings.values()):
                key = _hash([settings, content, steps[stage.name], seed])
                kept[stage.name] = self.out / "shared" / f"{stage.name}.{key}"
        return kept

    def _workdir(self, entry: Entry, seed: int) -> Path:
        name = [_slug(entry.trained), self.setting, str(self.budget), f"seed{seed}", self._settings(entry)[:8]]
        return self.out / "runs" / ".".join(name)

    def _steps(self, entry: Entry) -> dict[str, int]:
        """Steps of each stage that trains; of a budget in seconds, passes over the photos beside training are part."""
        if self.budget.unit == "steps":
            return dict.fromkeys(entry.training, max(self.budget.amount // len(entry.training), 1))
        file = self.out / "speed" / f"{_slug(entry.trained)}.{self.setting}.json"
        speeds = read_record(file) if file.is_file() else {}
        key = _hash([platform.node(), _devices(), entry.settings])
        if speeds.get("key") != key:
            workdir = file.with_suffix("")
            shutil.rmtree(workdir, ignore_errors=True)
            short = _main(entry, workdir, dict.fromkeys(entry.training, SPEED_STEPS), 0)
            self._command("-m", "agriclip_jax.main", *short, "--config.log_every=5")
            rates = {name: images_per_second(workdir / name) for name in entry.training}
            speeds = {"key": key, "images_per_s": rates, "beside": seconds_beside(workdir)}
            write_json(file, speeds)
            shutil.rmtree(workdir)
        share = (self.budget.amount - speeds["beside"]) / len(entry.training)
        batch = {stage.name: configs.images_per_step(stage.config) for stage in entry.plan}
        steps = {name: int(share * speeds["images_per_s"][name] / batch[name]) for name in entry.training}
        if min(steps.values()) < 1:
            raise UserError(
                f"--budget={self.budget}: {entry.name} takes {speeds['beside']:.0f} s beside training, which leaves no "
                "step to one of its stages; give more"
            )
        return steps

    def _key(self, entry: Entry, seed: int) -> str:
        """Everything that decides a record, hashed, but for the code and the device, which it names."""
        return _hash([self._settings(entry), entry.use, seed, str(self.budget)])

    def _settings(self, entry: Entry) -> str:
        """The same of what all seeds and budgets share: recipe, content of the data, suite."""
        return _hash([VERSION, entry.settings, entry.content, self.suite.read_text(encoding="utf-8")])

    def _record(self, entry: Entry, seed: int, workdir: Path, final: Path) -> dict[str, Any]:
        folders = list((final / "evaluations").glob(f"{self.suite.stem}-*-{entry.use}"))
        found = records.read(max(folders, key=lambda each: each.stat().st_mtime_ns))
        environment = read_record(final / "environment.json", "devices", "code")
        steps, images, seconds = 0, 0, 0.0
        for name in entry.training:
            config = configs.read(workdir / name)
            steps += config.total_steps
            seen = config.total_steps * configs.images_per_step(config)
            images += seen
            seconds += seen / images_per_second(workdir / name)
        seconds += seconds_beside(workdir)
        tasks = {
            name: {
                **{part: record[part] for part in ("group", "domain", "chance", "images")},
                "photos": _hash(record["sources"])[:8],
                "right": standings.packed(np.equal(record["labels"], record["predicted"])),
            }
            for name, record in sorted(found.scored("zeroshot").items())
        }
        return {
            "recipe": entry.name,
            "setting": self.setting,
            "suite": self.suite.stem,
            "budget": str(self.budget),
            "seed": seed,
            "given": {key: value for key, value in entry.given.items() if key.replace(".", "/") not in configs.WHERE},
            "steps": steps,
            "images": images,
            "accelerator_seconds": round(seconds, 1),
            "devices": environment["devices"],
            "code": environment["code"],
            "parameters": {"all": environment.get("parameters"), "trained": environment.get("trained")},
            "tasks": tasks,
        }

    def _command(self, *arguments: str) -> None:
        """Raises `UserError` or `RunFailure`, as the command did, with its last line."""
        self.records.mkdir(parents=True, exist_ok=True)
        log = self.out / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT)
            before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
            try:
                status = process.wait()
            except (KeyboardInterrupt, SystemExit) as stop:
                if isinstance(stop, SystemExit):
                    process.terminate()
                process.wait()  # Ctrl-C reached it too; either way it saves where it is
                self.say("stopped; give the same command again to go on")
                raise
            finally:
                signal.signal(signal.SIGTERM, before)
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no word")
            kind = UserError if status == 2 else RunFailure
            raise kind(f"{Path(arguments[0]).name} {' '.join(arguments[1:3])}: {last.strip()} (see {log})")


def _other(file: Path, entry: Entry) -> UserError:
    return UserError(
        f"{file} is of other keys, data or another suite than {entry.name} has here; remove it, or name another "
        "folder by --records"
    )


@cache
def _devices() -> list[str]:
    """The devices that a run would find; asked in a process of its own, for one that holds them keeps others out."""
    asked = "import jax, json; print(json.dumps([device.device_kind for device in jax.devices()]))"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    if told.returncode:
        raise RunFailure(f"jax finds no device: {told.stderr.strip().splitlines()[-1]}")
    return json.loads(told.stdout)


def _main(entry: Entry, workdir: Path, steps: Mapping[str, int], seed: int) -> list[str]:
    given = {**entry.given, **entry.keys(steps), "seed": str(seed)}
    return [f"--config={entry.spec}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in given.items())]


def _copy(run: Path, to: Path) -> None:
    """Copies a run's folder, all of it or nothing."""
    partial = to.with_name(f"{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run, partial)
    partial.rename(to)


def images_per_second(workdir: Path) -> float:
    """What a run reaches undisturbed: the upper quartile of its rows, for whatever else a machine does slows it.

    Those of its first third are left out: compilation and the filling of caches.

    Raises:
      RunFailure: it has no row.
    """
    rates = [row["images_per_s"] for row in records.log(workdir / "metrics.jsonl") if row.get("images_per_s")]
    if not rates:
        raise RunFailure(f"{workdir} has no row that says how fast it was; give it more steps")
    return float(np.percentile(rates[-(-len(rates) // 3) if len(rates) > 1 else 0 :], 75))


def seconds_beside(workdir: Path) -> float:
    """Seconds that a recipe's passes over the photos took beside training."""
    files = [file for name in ("aligner.json", "features.json") for file in sorted(workdir.rglob(name))]
    return sum(read_record(file, "seconds")["seconds"] for file in files)


def _content(stage: configs.Stage) -> list[str]:
    """Fingerprints of the data of a stage, and of the weights, tokenizer and keywords that lie beside it."""
    config = stage.config
    folders = (config.data.path, config.data.replay.path)
    data = [read_record(Path(f) / "alive.json", "fingerprint")["fingerprint"] if f else "" for f in folders]
    named = [*(config.init[name] for name in ("model", "image", "text", "aligner")), config.text.tokenizer]
    if config.sclip.keywords.startswith("file:"):
        named.append(config.sclip.keywords.removeprefix("file:"))
    return data + [_fingerprint(Path(each)) for each in named if each and Path(each).exists()]


def _fingerprint(path: Path) -> str:
    """Of a file; of a run, of its checkpoints; of another folder, of all files in it."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    files = sorted(each for each in root.rglob("*") if each.is_file())
    return _hash([[str(each.relative_to(root)), _fingerprint(each)] for each in files])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_@=+-]+", "_", name.removesuffix(".py"))


def numbers(flag: str, text: str) -> list[int]:
    """Raises `UserError` for a text that is not like "0,1,2"."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise UserError(f"{flag}={text}: give whole numbers with commas between them, such as 0,1,2")
    return [int(part) for part in text.split(",")]
