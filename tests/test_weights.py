"""Name maps both ways, and what a foreign checkpoint that does not fit is told; parity is in tests/parity."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.errors import UserError
from agriclip_jax.weights import families, importing, names

WIDTH, LAYERS, PATCH, GRID = 64, 2, 4, 3


def clip(rng):
    """The arrays of a small CLIP as OpenAI names them, by name."""

    def block(prefix, width):
        shapes = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }
        return {f"{prefix}.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}

    norms = {f"visual.{norm}.{part}": (WIDTH,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    shapes = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (GRID**2 + 1, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "visual.proj": (WIDTH, 32),
        **norms,
        **block("visual.transformer.resblocks", WIDTH),
        "token_embedding.weight": (99, WIDTH),
        "positional_embedding": (12, WIDTH),
        **block("transformer.resblocks", WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
        "text_projection": (WIDTH, 32),
        "logit_scale": (),
    }
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def save(path, arrays):
    """A safetensors file, written by hand."""
    header, data = {}, b""
    for name, array in arrays.items():
        ends = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": ends}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def arrays():
    return clip(np.random.default_rng(0))


def test_a_clip_is_told_from_its_names_and_configured_from_its_shapes(tmp_path, arrays):
    model = importing.open_model(save(tmp_path / "weights.bin", arrays))
    image, words = model.towers["image"], model.towers["text"]
    assert model.family == "clip (openai, open_clip)"
    assert (image.blocks.width, image.blocks.depth, image.blocks.heads) == (WIDTH, LAYERS, 1)
    assert (image.patch, image.image_size, image.embed_dim) == (PATCH, PATCH * GRID, 32)
    assert (words.vocab_size, words.context_length, words.end_id) == (99, 12, 98)
    assert image.blocks.activation == words.blocks.activation == "quick_gelu"
    scale = model.scale()["logit_scale"]
    assert scale == arrays["logit_scale"] and scale.shape == ()


def test_every_parameter_is_where_its_meaning_says(tmp_path, arrays):
    params = importing.open_model(save(tmp_path / "weights", arrays)).params("image")
    attention = params["blocks"]["attention"]
    for i in range(LAYERS):
        layer = f"visual.transformer.resblocks.{i}"
        np.testing.assert_array_equal(attention["qkv"]["kernel"][i], arrays[f"{layer}.attn.in_proj_weight"].T)
        np.testing.assert_array_equal(params["blocks"]["mlp"]["up"]["bias"][i], arrays[f"{layer}.mlp.c_fc.bias"])
    pixel = arrays["visual.conv1.weight"][:, 1, 2, 3]  # of channel 1 at row 2, column 3
    np.testing.assert_array_equal(params["patch"]["kernel"][(2 * PATCH + 3) * 3 + 1], pixel)
    places = arrays["visual.positional_embedding"]
    np.testing.assert_array_equal(params["cls"], (arrays["visual.class_embedding"] + places[0])[None])
    assert all(leaf.flags.c_contiguous for _, leaf in importing.open_model(tmp_path / "weights").leaves("image"))


@pytest.mark.parametrize("prefix", ["state_dict.", "state_dict.module.", "model.", "teacher.backbone."])
def test_what_training_programs_put_before_names_is_taken_off(tmp_path, arrays, prefix):
    model = importing.open_model(save(tmp_path / "weights", {prefix + name: array for name, array in arrays.items()}))
    assert model.family == "clip (openai, open_clip)"
    np.testing.assert_array_equal(model.params("text")["tokens"], arrays["token_embedding.weight"])


def drop(arrays):
    del arrays["visual.ln_pre.bias"]


def rename(arrays):
    arrays["visual.ln_prae.bias"] = arrays.pop("visual.ln_pre.bias")


def add(arrays):
    arrays["visual.adapter.weight"] = np.zeros(3, np.float32)


def shorten(arrays):
    del arrays["transformer.resblocks.1.mlp.c_proj.weight"]


def strangers(arrays):
    arrays.clear()
    arrays["weight"] = np.zeros(3, np.float32)


def squeeze(arrays):
    arrays["visual.positional_embedding"] = arrays["visual.positional_embedding"][:-1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop, "lacks visual.ln_pre.bias"),
        (rename, "lacks visual.ln_pre.bias; did you mean 'visual.ln_prae.bias'"),
        (add, "has visual.adapter.weight, for which this family has no place"),
        (shorten, "lacks transformer.resblocks.1.mlp.c_proj.weight"),
        (squeeze, "8 position embeddings are no square grid"),
        (strangers, "no known family"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_that_names_it(tmp_path, arrays, damage, words):
    damage(arrays)
    file = save(tmp_path / "weights", arrays)
    with pytest.raises(UserError, match=words) as told:
        importing.open_model(file)
    assert str(file) in str(told.value) and "\n" not in str(told.value)


@settings(deadline=None, max_examples=30)
@given(how=st.sampled_from(sorted(names.HOW)), seed=st.integers(0, 99))
def test_every_way_of_a_row_is_undone_by_its_other_direction(how, seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "same": [(5, 4)],
        "dense": [(4, 6), (4, 6), (4, 6)],
        "query_and_value": [(6,), (6,)],
        "query_and_key_value": [(12, 4)],
        "batch_of_one": [(1, 3, 4)],
        "patch": [(6, 3, 4, 4)],
        "convolution": [(6, 5, 3, 3)],
        "class_and_positions": [(6,), (10, 6)],
        "class_and_positions_of_one": [(1, 1, 6), (1, 10, 6)],
    }[how]
    theirs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    ours = names.HOW[how].read(theirs)
    written = names.HOW[how].write(ours, len(theirs))
    assert [array.shape for array in written] == shapes
    assert all(np.array_equal(a, b) for a, b in zip(names.HOW[how].read(written), ours, strict=True))


def test_no_family_is_taken_for_another():
    for name, family in families.FAMILIES.items():
        rows = [row for tower in family.towers.values() for row in tower]
        theirs = {
            layer.replace("{}", "0").replace("{1}", "1") for row in [*rows, *family.scale] for layer in row.theirs
        }
        assert families.recognise(theirs, "it") == name
