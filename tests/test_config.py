"""Configurations are checked before anything compiles, each fault in one line with the nearest valid name."""

import shutil
from pathlib import Path

import pytest

from agriclip_jax import config as configs
from agriclip_jax.errors import UserError


@pytest.mark.parametrize("variant", ["", ":photos", ":s16", ":b16"])
def test_every_variant_of_the_recipe_is_whole(variant):
    config = configs.load(f"configs/alive.py{variant}")
    assert config.recipe == f"alive{variant}".replace(":", "_")


def test_the_paper_scale_variant_is_vit_b16_at_224_with_a_batch_of_4096():
    config = configs.load("configs/alive.py:b16")
    assert (config.image.size, config.image.patch, config.image_size) == ("B", 16, 224)
    assert config.batch_size >= 4096


def test_values_are_read_as_the_keys_own_type():
    overrides = {
        "total_steps": "7",
        "optimizer.learning_rate": "1",
        "mesh": "data=2",
        "text.causal": "false",
        "objectives.distill": "('linear', 0.0, 1.0, 0.5)",
        "optimizer.freeze": "('text/.*',)",
    }
    config = configs.load("configs/alive.py", overrides)
    assert config.total_steps == 7 and config.optimizer.learning_rate == 1.0 and config.mesh == "data=2"
    assert config.text.causal is False and config.objectives.distill == ("linear", 0.0, 1.0, 0.5)
    assert config.optimizer.freeze == ("text/.*",)


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("total_stepz", "3", r"--config.total_stepz: unknown key; did you mean 'total_steps'"),
        ("optimizer.lr", "3", r"--config.optimizer.lr: unknown key; did you mean"),
        ("optimizer", "3", r"--config.optimizer: unknown key"),
        ("batch_size", "many", r"--config.batch_size: 'many' is not a int"),
        ("batch_size", "1.5", r"config.batch_size: 1.5 is a float, not a int"),
        ("batch_size", "0", r"config.batch_size: 0 is not at least 1"),
        ("batch_size", "1", r"config.objectives.contrastive tells examples of a batch apart: give config.batch_size"),
        ("temperature", "1e999", r"config.temperature: inf is not finite"),
        ("objectives.contrastive", "('cosine',1e999,0.0)", r"config.objectives.contrastive: inf is not finite"),
        ("data.path", "/nowhere", r"config.data.path: there is no folder /nowhere; make one with tools/build_alive.py"),
        ("text.context_length", "1", r"config.text.context_length: 1 is not at least 2, a start and an end"),
        ("image.drop_path", "1.0", r"config.image.drop_path: 1.0 is not at least 0 and below 1"),
        ("image.token_keep", "0", r"config.image.token_keep: 0.0 is not above 0 and at most 1"),
        ("temperature", "-1", r"config.temperature: -1.0 is not above 0"),
        ("views.local.size", "30", r"config.views.local.size: 30 is not a multiple of config.image.patch 12"),
        (
            "image_size",
            "70",
            r"config.image_size: 70 is not a multiple of config.image.patch 12; use 60",
        ),
        ("image.depth", "-1", r"config.image.depth: -1 is not at least 0"),
        ("embed_dim", "1000000000000", r"config.embed_dim: 1000000000000 is not at most 1,048,576"),
        ("peft.rank", "1000000000", r"config.peft.rank: 1000000000 is not at most 1,048,576"),
        ("distill.prototypes", "0", r"config.distill.prototypes: 0 is not at least 1"),
        ("distill.student_temperature", "0", r"config.distill.student_temperature: 0.0 is not above 0"),
        ("optimizer.b1", "1.5", r"config.optimizer.b1: 1.5 is not at least 0 and below 1"),
        ("views.global.scale", "('a', 'b')", r"config.views.global.scale: 'a' is not above 0 and at most 1"),
        ("views.local.blur", "(2.0,)", r"config.views.local.blur: 2.0 is not from 0 to 1"),
        ("optimizer.freeze", "(3,)", r"config.optimizer.freeze: 3 is not a pattern on parameter paths"),
        (
            "distill.teacher_temperature",
            "('linear', 0.0, 0.07, 0.3)",
            r"teacher_temperature: 0.0 is not above 0",
        ),
        ("distill.momentum", "('cosine', 0.9, 2.0)", r"config.distill.momentum: 2.0 is not from 0 to 1"),
        ("views.local.jitter", "('a', 0, 0, 0)", r"config.views.local.jitter: 'a' is not at least 0"),
        ("total_steps", "99999999999", r"config.total_steps: 99999999999 is not at most 2,147,483,647"),
        ("image.mean", "(0.5, 0.5)", r"config.image.mean: \(0.5, 0.5\) is not one of red, of green and of blue"),
        ("image.std", "(0.5,)", r"config.image.std: \(0.5,\) is not one of red"),
        ("image.mean", "(123.7, 116.3, 103.5)", r"config.image.mean: 123.7 is not from 0 to 1"),
        ("image.heads", "-2", r"config.image.heads: -2 is not at least 0"),
        ("data.caption_kinds", "('templates',)", r"caption_kinds: unknown 'templates'; did you mean 'template'"),
        ("data.caption_kinds", "()", r"config.data.caption_kinds: unknown ''"),
        ("views.global.count", "0", r"config.views.global.count: 0 is not at least 1"),
        ("dtype", "float16", r"config.dtype: unknown 'float16'; known: bfloat16, float32"),
    ],
)
def test_a_bad_value_is_one_line_that_says_what_and_where(key, value, message):
    with pytest.raises(UserError, match=message):
        configs.load("configs/alive.py", {key: value})


@pytest.mark.parametrize(
    "spec,message",
    [
        ("configs/alife.py", r"--config: there is no file configs/alife.py"),
        ("configs/alive.py:b17", r"has no variant 'b17'; did you mean 'b16'"),
        ("README.md", r"README.md is not a Python file"),
    ],
)
def test_a_missing_recipe_or_variant_is_named(spec, message):
    with pytest.raises(UserError, match=message):
        configs.load(spec)


@pytest.mark.parametrize(
    "body,message",
    [
        ("", "AttributeError"),
        ("def get_config(arg): return {}", "must return an ml_collections.ConfigDict"),
        ("def get_config(arg): 1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_like_it", "ModuleNotFoundError"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_line(tmp_path, body, message):
    file = tmp_path / "mine.py"
    file.write_text(body, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        configs.load(str(file))


def edited(tmp_path, edit):
    file = tmp_path / "mine.py"
    source = Path("configs/alive.py").read_text(encoding="utf-8")
    file.write_text(source.replace("    return config\n", f"    {edit}\n    return config\n", 1), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    "edit,message",
    [
        ("config.image.patches = 8", r"config.image.patches: unknown key; did you mean 'patch'"),
        ("del config.image['pool']", r"config.image.pool: missing"),
        ("config.views = 3", r"Could not override field 'views'"),
        ("config.batch_sizes = 3", r"config.batch_sizes: unknown key; did you mean 'batch_size'"),
    ],
)
def test_a_recipe_of_the_users_own_is_checked_likewise(tmp_path, edit, message):
    with pytest.raises(UserError, match=message):
        configs.load(edited(tmp_path, edit))


def test_only_keys_that_change_the_mathematics_differ():
    old = configs.load("configs/alive.py").to_dict()
    where = {"mesh": "data=8", "log_every": "9", "checkpoint.every": "3", "data.threads": "4", "eval_every": "5"}
    assert configs.differences(old, configs.load("configs/alive.py", where).to_dict()) == []
    what = {"seed": "1", "batch_size": "8", "objectives.distill": "0.5", "optimizer.learning_rate": "0.1"}
    named = configs.differences(old, configs.load("configs/alive.py", what).to_dict())
    assert [line.split(" was ")[0] for line in named] == sorted(
        ["seed", "batch_size", "objectives.distill", "optimizer.learning_rate"]
    )
    assert configs.differences(old, old | {"recipe": "another name of it"}) == []


def test_a_configuration_read_back_from_json_is_the_same():
    import json

    config = configs.load("configs/alive.py").to_dict()
    assert configs.differences(json.loads(json.dumps(config)), config) == []


TWO_STAGES = """
from agriclip_jax import config as configs

def get_config(text):
    words = configs.words(text, "two", variant=("", "photos"), stage=("all", "one", "two"))
    config = configs.beside(__file__, "alive", words["variant"])
    config.recipe = "two"
    config.stages = ("one", "two") if words["stage"] == "all" else ()
    config.seed = 2 if words["stage"] == "two" else 1
    return config
"""


@pytest.fixture
def two_stages(tmp_path):
    shutil.copy("configs/alive.py", tmp_path)
    (tmp_path / "two.py").write_text(TWO_STAGES, encoding="utf-8")
    return str(tmp_path / "two.py")


def test_a_recipe_may_be_made_of_stages_which_share_what_is_set_by_hand(two_stages):
    given = {"total_steps": "7", "stages.two.batch_size": "32"}
    one, two = configs.stages(f"{two_stages}:photos", given)
    assert (one.name, one.config.seed, one.config.total_steps, one.config.batch_size) == ("one", 1, 7, 64)
    assert (two.name, two.config.seed, two.config.total_steps, two.config.batch_size) == ("two", 2, 7, 32)
    assert one.config.image_size == two.config.image_size == 72 and one.config.stages == ()
    assert one.explicit == {"total_steps"} and two.explicit == {"total_steps", "batch_size"}


def test_one_stage_of_a_recipe_and_a_recipe_without_stages_are_runs_like_any_other(two_stages):
    (alone,) = configs.stages(f"{two_stages}:stage=two", {"seed": "5"})
    assert (alone.name, alone.config.seed, alone.explicit) == ("", 5, {"seed"})
    assert configs.stages("configs/alive.py", {})[0].name == ""


@pytest.mark.parametrize(
    ("argument", "given", "message"),
    [
        (":phots", {}, r"configs/two.py has no 'phots'.*photos"),
        (":stage=three", {}, r"has no 'stage=three'"),
        (":stage=one,stage=two", {}, r"stage is given twice, as 'one' and as 'two'"),
        ("", {"stages.two": "1"}, r"config.stages.two: a recipe says itself of which stages it is"),
        ("", {"stages": "('two',)"}, r"config.stages: a recipe says itself of which stages it is"),
        ("", {"stages.tow.seed": "1"}, r"--config.stages.tow: there is no such stage.*two"),
        ("", {"stages.two.sede": "1"}, r"--config.stages.two.sede: unknown key"),
    ],
)
def test_an_unknown_stage_or_word_is_one_line(two_stages, argument, given, message):
    with pytest.raises(UserError, match=message):
        configs.stages(two_stages + argument, given)
