"""Name maps both ways, and what a foreign checkpoint that does not fit is told; parity is in tests/parity."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax import encoders, rules
from agriclip_jax.data.views import EvalView
from agriclip_jax.encoders import layers, text, vit
from agriclip_jax.errors import UserError
from agriclip_jax.weights import beside, families, importing, names

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


def widen(arrays):
    arrays["visual.transformer.resblocks.1.mlp.c_fc.bias"] = np.zeros(3, np.float32)
    arrays["ln_final.bias"] = np.zeros((WIDTH, 1), np.float32)


def turn(arrays):
    arrays["text_projection"] = arrays["text_projection"].T


def inflate(arrays):
    arrays["visual.transformer.resblocks.0.ln_1.weight"] = np.zeros(100 * WIDTH, np.float32)


def lengthen(arrays):
    arrays["logit_scale"] = np.zeros(2, np.float32)


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
        (widen, r"ln_final.bias is \[64, 1\], should be \[64\]; visual.*1.mlp.c_fc.bias is \[3\], should be \[256\]"),
        (turn, r"text_projection is \[32, 64\], should be \[64, 64\]"),
        (lengthen, r"logit_scale is \[2\], should be \[\]"),
        (inflate, "ask for a tower of .* parameters, which it does not hold"),
        (strangers, "no known family"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_that_names_it(tmp_path, arrays, damage, words):
    damage(arrays)
    file = save(tmp_path / "weights", arrays)
    with pytest.raises(UserError, match=words) as told:
        importing.open_model(file)
    assert str(file) in str(told.value) and "\n" not in str(told.value)


def test_the_model_is_found_among_what_else_a_training_program_saved(tmp_path, arrays):
    others = {f"optimizer.exp_avg.{i}": np.zeros(3, np.float32) for i in range(100)}
    teacher = {f"teacher.module.{name}": array for name, array in arrays.items()}
    head = {"teacher.head.weight": np.zeros(3, np.float32)}
    model = importing.open_model(save(tmp_path / "weights", others | head | teacher))
    assert model.container.tensors.keys() == arrays.keys()


def test_shapes_of_what_would_be_written_are_known_without_writing(arrays):
    tables = families.FAMILIES["clip (openai, open_clip)"].towers
    for rows in tables.values():
        readers = {name: (lambda array=array: array) for name, array in arrays.items()}
        ours = dict(names.read(rows, readers))
        wanted = {name: array.shape for name, array in names.write(rows, ours)}
        assert names.shapes(rows, {path: array.shape for path, array in ours.items()}) == wanted


def folder(path, arrays, **files):
    path.mkdir()
    save(path / "model.safetensors", arrays)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


COLOURS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
OF_TRANSFORMERS = {f"image_{name}": value for name, value in COLOURS.items()}


@pytest.mark.parametrize(
    ("files", "mean", "std"),
    [
        ({}, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ({"open_clip_config": {"model_cfg": {}, "preprocess_cfg": COLOURS}}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({"preprocessor_config": OF_TRANSFORMERS}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({"processor_config": {"image_processor": OF_TRANSFORMERS}}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({"preprocessor_config": OF_TRANSFORMERS | {"do_normalize": False}}, (0, 0, 0), (1, 1, 1)),
        ({"config": {"pretrained_cfg": COLOURS}}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ],
)
def test_the_preprocessing_beside_weights_decides_over_that_of_their_family(tmp_path, arrays, files, mean, std):
    image = importing.open_model(folder(tmp_path / "model", arrays, **files)).towers["image"]
    assert (image.mean, image.std) == (mean, std)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"preprocessor_config": {"image_mean": [0, 0, 0], "image_std": [1, 1, 0]}}, "of no three colours"),
        ({"preprocessor_config": {"image_mean": [0], "image_std": [1]}}, "of no three colours"),
        ({"preprocessor_config": {"image_mean": ["red"], "image_std": [1]}}, "do not fit together"),
        ({"preprocessor_config": [1, 2]}, "it holds no names"),
        ({"open_clip_config": {"model": {}}}, "do not fit together"),
        ({"open_clip_config": {"model_cfg": {"vision_cfg": {"head_width": 0}}}}, "do not fit together"),
        ({"open_clip_config": {"model_cfg": {"vision_cfg": {"head_width": 20}}}}, "3 heads do not divide"),
        ({"open_clip_config": {"model_cfg": {"text_cfg": {"heads": "8"}}}}, "'8' heads do not divide"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path, arrays, files, words):
    with pytest.raises(UserError, match=words) as told:
        importing.open_model(folder(tmp_path / "model", arrays, **files))
    assert "\n" not in str(told.value)


# ---- big_vision: its modules by their names ----


class MlpBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = linen.gelu(linen.Dense(2 * WIDTH)(x))
        return linen.Dense(WIDTH)(hidden)


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=4)(y, y)
        return x + MlpBlock()(linen.LayerNorm()(x)), None


class Encoder(linen.Module):
    scanned: bool

    @linen.compact
    def __call__(self, x):
        if self.scanned:
            stack = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
            x, _ = stack(name="encoderblock")(x, None)
        else:
            for i in range(LAYERS):
                x, _ = Block(name=f"encoderblock_{i}")(x, None)
        return linen.LayerNorm(name="encoder_norm")(x)


class MAPHead(linen.Module):
    @linen.compact
    def __call__(self, x):
        probe = self.param("probe", linen.initializers.normal(), (1, 1, x.shape[-1]))
        x = linen.MultiHeadDotProductAttention(num_heads=4)(jnp.tile(probe, [len(x), 1, 1]), x)
        return (x + MlpBlock()(linen.LayerNorm()(x)))[:, 0]


class Vit(linen.Module):
    pool: str
    scanned: bool

    @linen.compact
    def __call__(self, images):
        x = linen.Conv(WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, WIDTH)
        x = x + self.param("pos_embedding", linen.initializers.normal(), (1, GRID**2, WIDTH))
        if self.pool == "cls":
            cls = self.param("cls", linen.initializers.normal(), (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(cls, [len(x), 1, 1]), x], axis=1)
        x = Encoder(self.scanned, name="Transformer")(x)
        return {"cls": lambda: x[:, 0], "mean": lambda: x.mean(1), "attention": lambda: MAPHead()(x)}[self.pool]()


@pytest.mark.parametrize(
    ("pool", "scanned", "save_to", "prefix"),
    [
        ("cls", False, np.savez, ""),
        ("mean", True, np.savez_compressed, "params/"),
        ("attention", True, np.savez, "params/"),
    ],
)
def test_a_vit_of_big_vision_computes_what_its_modules_in_flax_compute(tmp_path, pool, scanned, save_to, prefix):
    rng, module = np.random.default_rng(0), Vit(pool, scanned)
    images = rng.integers(0, 256, (2, PATCH * GRID, PATCH * GRID, 3), np.uint8)
    pixels = jnp.asarray(images / 127.5 - 1, jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    params = jax.tree.map(lambda leaf: np.float32(0.4 * rng.standard_normal(leaf.shape)), shapes)
    saved = {prefix + path: np.asarray(array) for path, array in rules.flatten(params).items()}
    save_to(tmp_path / "vit.npz", **saved, **{prefix + "head/kernel": np.zeros((WIDTH, 10), np.float32)})
    model = importing.open_model(tmp_path / "vit.npz")
    assert (model.family, model.towers["image"].pool) == ("vit (big_vision)", pool)
    network = encoders.tower(model.towers["image"])
    found = jax.jit(network)(model.params("image"), images).pooled
    wanted = jax.jit(module.apply)({"params": params}, pixels)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.std(wanted) > 0.3


def test_a_pickled_object_in_an_npz_stays_unread(tmp_path):
    np.savez(tmp_path / "vit.npz", **{"params/img/embedding/kernel": np.array([{}], object)})
    with pytest.raises(UserError, match="which is no tensor"):
        importing.open_model(tmp_path / "vit.npz")


@pytest.mark.parametrize("shape", [(), (0, 4), (10**9, 0)])
def test_a_scanned_stack_of_no_sensible_depth_is_one_line(tmp_path, shape):
    np.savez(tmp_path / "vit.npz", **{"Transformer/encoderblock/LayerNorm_0/scale": np.zeros(shape, np.float32)})
    with pytest.raises(UserError, match="no known family"):
        importing.open_model(tmp_path / "vit.npz")


# ---- AgriCLIP's aligner ----


def an_image_tower(path, rng):
    """DINO's names, an image tower without a projection."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, GRID**2 + 1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    layers = {"attn.qkv": 3 * WIDTH, "attn.proj": WIDTH, "mlp.fc1": WIDTH, "mlp.fc2": WIDTH}
    shapes |= {f"blocks.0.{name}.weight": (out, WIDTH) for name, out in layers.items()}
    shapes |= {f"blocks.0.{name}.bias": (out,) for name, out in layers.items()}
    shapes |= {
        f"{name}.{x}": (WIDTH,) for name in ("blocks.0.norm1", "blocks.0.norm2", "norm") for x in ("weight", "bias")
    }
    return importing.open_model(
        save(path, {n: np.asarray(rng.standard_normal(s), np.float32) for n, s in shapes.items()})
    )


def test_an_aligner_becomes_the_projection_and_its_bias_is_divided_by_c1_on_request(tmp_path):
    rng = np.random.default_rng(0)
    tower = an_image_tower(tmp_path / "dino", rng)
    aligner = {"W": rng.standard_normal((8, WIDTH)).astype(np.float32), "b": rng.standard_normal(8).astype(np.float32)}
    file = save(tmp_path / "aligner", aligner)
    released, right = (importing.with_aligner(tower, file, variance) for variance in (None, 0.5))
    assert (released.towers["image"].embed_dim, released.towers["image"].projection_bias) == (8, True)
    assert tower.towers["image"].embed_dim == 0
    np.testing.assert_array_equal(released.params("image")["projection"]["kernel"], aligner["W"].T)
    np.testing.assert_array_equal(released.params("image")["projection"]["bias"], aligner["b"])
    np.testing.assert_allclose(
        right.params("image")["projection"]["bias"], aligner["b"] / 3, rtol=1e-6
    )  # sqrt(4.5/0.5)


@pytest.mark.parametrize(
    ("aligner", "variance", "words"),
    [
        ({"W": (8, WIDTH)}, None, "is no aligner"),
        ({"W": (8, WIDTH), "b": (7,)}, None, "is no aligner"),
        ({"W": (8, WIDTH), "b": (8,), "x": (1,)}, None, "is no aligner"),
        ({"W": (8, 5), "b": (8,)}, None, "aligns features of width 5; those of .* have 64"),
        ({"W": (8, WIDTH), "b": (8,)}, 0.0, "a positive number, not 0.0"),
    ],
)
def test_what_is_no_aligner_of_a_tower_is_one_line(tmp_path, aligner, variance, words):
    tower = an_image_tower(tmp_path / "dino", np.random.default_rng(0))
    file = save(tmp_path / "aligner", {name: np.zeros(shape, np.float32) for name, shape in aligner.items()})
    with pytest.raises(UserError, match=words):
        importing.with_aligner(tower, file, variance)


def test_a_tower_that_has_a_projection_takes_no_aligner(tmp_path, arrays):
    model = importing.open_model(save(tmp_path / "clip", arrays))
    with pytest.raises(UserError, match="no image tower without a projection"):
        importing.with_aligner(model, tmp_path / "clip")


@settings(deadline=None, max_examples=30)
@given(how=st.sampled_from(sorted(names.HOW)), seed=st.integers(0, 99))
def test_every_way_of_a_row_is_undone_by_its_other_direction(how, seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "same": [(5, 4)],
        "dense": [(4, 6), (4, 6), (4, 6)],
        "side_by_side": [(6, 4), (6, 4), (6, 4)],
        "without_bias": [(12, 4)],
        "query_and_value": [(6,), (6,)],
        "query_and_key_value": [(12, 4)],
        "batch_of_one": [(1, 3, 4)],
        "patch": [(6, 3, 4, 4)],
        "patch_innermost_width": [(4, 4, 3, 6)],
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
        assert families.recognise(theirs, "it") == (name, family)


def test_the_end_of_texts_is_what_transformers_configuration_says(tmp_path):
    rows = families.FAMILIES["clip (transformers)"]
    blocks = layers.BlockConfig(width=64, depth=1, heads=1, mlp=64)
    image = vit.ViTConfig(blocks, 8, 16, 32, pre_norm=True, patch_bias=False)
    towers = {"image": image, "text": text.TextConfig(blocks, 50, 9, end_id=49, embed_dim=32)}
    arrays = {"logit_scale": np.float32(1)}
    for tower, config in towers.items():
        leaves = rules.flatten(nnx.to_pure_dict(encoders.tower(config).shapes))
        arrays |= names.write(
            rows.towers[tower], {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}
        )
    for said, end in ((None, 49), (2, 49), (47, 47)):
        folder = tmp_path / str(said)
        folder.mkdir()
        np.savez(folder / "model.npz", **arrays)
        heads, ending = {"num_attention_heads": 1}, {"eos_token_id": said} if said else {}
        config = {"vision_config": heads, "text_config": heads | ending}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert importing.open_model(folder).towers["text"].end_id == end


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"size": 224, "feature_extractor_type": "ViTFeatureExtractor"}, ("squash", 1.0)),
        ({"size": 224, "crop_size": 224, "do_center_crop": True}, ("crop", 1.0)),
        (
            {"size": {"shortest_edge": 354}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
            ("crop", 224 / 354),
        ),
        ({"size": {"height": 224, "width": 224}, "resample": 2}, ("squash", 1.0)),
    ],
)
def test_preprocessing_is_what_transformers_file_says_in_old_words_and_new(said, wanted, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    found = beside.preparation(tmp_path, "clip (transformers)")
    assert (found["resize"], found["crop_share"]) == wanted
    assert found["filter"] == ("bilinear" if "resample" in said else "bicubic")
    assert EvalView(224, found["resize"], found["crop_share"]).short == {224 / 354: 354}.get(wanted[1], 224)


def test_heads_are_told_by_the_width_where_no_configuration_tells_them(tmp_path):
    rows = families.FAMILIES["dinov2 (transformers)"]
    tower = vit.ViTConfig(layers.BlockConfig(384, 1, 6, mlp=1536, layer_scale=1.0), 14, 28, embed_dim=0)
    leaves = rules.flatten(nnx.to_pure_dict(encoders.tower(tower).shapes))
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}
    np.savez(tmp_path / "model.npz", **dict(names.write(rows.towers["image"], zeros)))
    assert importing.open_model(tmp_path / "model.npz").towers["image"].blocks.heads == 6
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3}), encoding="utf-8")
    assert importing.open_model(tmp_path).towers["image"].blocks.heads == 3
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 0}), encoding="utf-8")
    with pytest.raises(UserError, match="its num_attention_heads is 0, no number of heads"):
        importing.open_model(tmp_path)
