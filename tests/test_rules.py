"""One engine for every table of (pattern, effect)."""

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agriclip_jax import rules
from agriclip_jax.errors import UserError
from agriclip_jax.rules import Rule

PATHS = ("image/patch/kernel", "image/blocks/mlp/up/kernel", "image/blocks/mlp/up/bias", "text/tokens", "logit_scale")


def test_the_first_rule_that_matches_a_whole_path_wins():
    table = (Rule(r"image/.*/bias", "bias"), Rule(r"image/.*", "image"), Rule(r"tokens", "never", optional=True))
    assert rules.match(table, PATHS, "rest") == {
        "image/patch/kernel": "image",
        "image/blocks/mlp/up/kernel": "image",
        "image/blocks/mlp/up/bias": "bias",
        "text/tokens": "rest",
        "logit_scale": "rest",
    }


def test_a_rule_that_matches_nothing_names_near_misses():
    with pytest.raises(UserError, match=r"freeze: 'text/token' matches no parameter; near ones: text/tokens"):
        rules.match((Rule("text/token", 0),), PATHS, 1, "freeze")


def test_a_pattern_that_is_no_regular_expression_is_named():
    with pytest.raises(UserError, match=r"'image/\(' is not a regular expression"):
        rules.match((Rule("image/(", 0),), PATHS, 1)


def test_a_rule_hidden_behind_another_is_no_error():
    assert rules.match((Rule(".*", 1), Rule("logit_scale", 2)), PATHS, 0)["logit_scale"] == 1


names = st.text("abc_1", min_size=1, max_size=4)
trees = st.recursive(st.integers(), lambda t: st.dictionaries(names, t, min_size=1, max_size=3), max_leaves=12)


@given(st.dictionaries(names, trees, min_size=1, max_size=3))
def test_flattening_a_tree_and_back_gives_the_tree(tree):
    assert rules.unflatten(rules.flatten(tree)) == tree


def test_paths_of_pytrees_join_keys_fields_and_positions():
    import jax

    leaves = jax.tree_util.tree_leaves_with_path({"a": (jnp.ones(1), {"b/c": jnp.ones(1)})})
    assert [rules.path_of(p) for p, _ in leaves] == ["a/0", "a/1/b/c"]
