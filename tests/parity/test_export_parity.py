"""What transformers and open_clip load from an exported folder gives the cosines that the model gives here."""

import dataclasses
import types

import jax
import numpy as np
import originals
import pytest
from flax import nnx
from PIL import Image
from test_weight_families import check_both, imported
from tiny import call

from agriclip_jax import encoders, inference
from agriclip_jax.data import tokenizers, views
from agriclip_jax.encoders import layers, resnet, text, vit
from agriclip_jax.weights import exporting, open_clip, timm_names

pytestmark = pytest.mark.parity

CAPTIONS = ["a photo of a healthy maize leaf.", "A Dairy Cow", "rust", "a leaf with rust, on the underside; " * 9]
STACK = layers.BlockConfig(width=64, depth=2, heads=4, mlp=128)
IMAGE = vit.ViTConfig(STACK, patch=8, image_size=32, embed_dim=24, pre_norm=True, patch_bias=False)
TEXT = text.TextConfig(STACK, vocab_size=540, context_length=16, end_id=539, embed_dim=24)
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SIGLIP = {"embed_dim": 0, "pool": "attention", "pre_norm": False, "patch_bias": True, **HALF}
SIGLIP_TEXT = {"embed_dim": 64, "causal": False, "pool": "last", "projection_bias": True}
DINO = {"pre_norm": False, "patch_bias": True, "projection_bias": True}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(["a healthy maize leaf", "a leaf with rust on the underside", "a dairy cow"], 540)


@pytest.fixture(scope="module")
def siglip_tokenizer(tmp_path_factory):
    """A sentencepiece vocabulary of the same size, as SigLIP's tokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("siglip")
    (folder / "texts.txt").write_text("\n".join(CAPTIONS * 9), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=48,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return tokenizers.Tokenizer.load(folder / "spiece.model")


def random(path, shape):
    """A parameter of a size that keeps features of order 1."""
    name, rng = str(path[-1].key), np.random.default_rng(sum(map(ord, str(path))))
    noise = rng.standard_normal(shape.shape)
    if name in ("scale", "var"):
        return np.float32(1 + 0.2 * abs(noise))
    if name == "kernel":  # its layer's axis is no input
        inputs = np.prod(shape.shape[-4:-1] if "conv" in str(path) else shape.shape[-2])
        return np.float32(noise / inputs**0.5)
    return np.float32(0.2 * noise)


def made(image, words, tokenizer, **more):
    """A model of random parameters, with the functions of `inference.Model` that the comparison asks for."""
    words = dataclasses.replace(words, vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id)
    is_resnet = isinstance(image, resnet.ResNetConfig)
    towers = {
        "image": (encoders.resnet_tower if is_resnet else encoders.image_tower)(image),
        "text": encoders.text_tower(words),
    }
    params = {
        tower: jax.tree_util.tree_map_with_path(random, nnx.to_pure_dict(network.shapes))
        for tower, network in towers.items()
    }

    @jax.jit
    def embed_images(params, images):
        return towers["image"](params, towers["image"](params, images).pooled, method="embed")

    @jax.jit
    def embed_rows(params, rows):
        return towers["text"](params, towers["text"](params, rows), method="embed")

    return types.SimpleNamespace(
        towers=towers,
        params=params | {name: np.float32(value) for name, value in ({"logit_scale": 2.5} | more).items()},
        tokenizer=tokenizer,
        image_size=image.image_size,
        view=views.EvalView(image.image_size),
        embed_images=lambda images: np.asarray(embed_images(params["image"], images)),
        embed_texts=lambda texts: np.asarray(embed_rows(params["text"], tokenizer.encode(texts, words.context_length))),
    )


def photos(size):
    """Pictures: of the size itself, and others that are shrunk, with an even margin beside the centre square."""
    rng = np.random.default_rng(0)
    shapes = [(size, size, 3), (size, 2 * size, 3), (3 * size, 6 * size, 3)]
    noise = [rng.integers(0, 256, shape, np.uint8) for shape in shapes[:2]]
    rows, columns = np.mgrid[: shapes[2][0], : shapes[2][1]] / size
    smooth = np.stack([40 * rows, 20 * columns, 128 + 99 * np.sin(rows + columns)], -1).astype(np.uint8)
    return [Image.fromarray(picture) for picture in (*noise, smooth)]


def ours(model):
    """Embeddings of the photos and the captions."""
    images = np.stack([views.eval_view(photo, model.view) for photo in photos(model.image_size)])
    return model.embed_images(images), model.embed_texts(CAPTIONS)


def check(model, images, words, scale, bias, of):
    """Sees that embeddings and logits are those of the model here; `of` is its row of the table."""
    z, t = ours(model)
    originals.agree(images, z, least_spread=0.05, of=(*of, "image embedding"))
    originals.agree(words, t, least_spread=0.05, of=(*of, "text embedding"))
    originals.agree(images.numpy() @ words.numpy().T, z @ t.T, least_spread=0.01, of=(*of, "cosines"))
    assert scale == pytest.approx(np.exp(np.asarray(model.params["logit_scale"])), rel=1e-6)
    assert bias == pytest.approx(float(np.asarray(model.params.get("logit_bias", 0.0))))


def in_transformers(torch, model, folder, padding=True):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(
        text=CAPTIONS, images=photos(model.image_size), return_tensors="pt", padding=padding, truncation=True
    )
    with torch.no_grad():
        made = theirs(**inputs)
    bias = getattr(theirs, "logit_bias", None)
    check(
        model,
        made.image_embeds,
        made.text_embeds,
        theirs.logit_scale.exp().item(),
        0.0 if bias is None else bias.item(),
        (f"{type(theirs).__name__}, exported (hf)", "transformers"),
    )
    return type(theirs).__name__


def in_open_clip(torch, model, folder):
    open_clip = pytest.importorskip("open_clip")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    if model.view.share != 1:  # the lines that README.md has besides
        (_, lines) = (folder / "README.md").read_text(encoding="utf-8").split("tokenizer = ")
        exec(lines.partition("\n")[2].partition("photo =")[0], {"preprocess": preprocess, "model": theirs})
    theirs.eval()
    with torch.no_grad():
        z = theirs.encode_image(torch.stack([preprocess(p) for p in photos(model.image_size)]), normalize=True)
        t = theirs.encode_text(tokens, normalize=True)
    bias = theirs.logit_bias
    row = f"{kind_of(theirs)}, exported (open_clip)", "open_clip"
    check(model, z, t, theirs.logit_scale.exp().item(), 0.0 if bias is None else bias.item(), row)
    return theirs


def kind_of(theirs):
    """What open_clip makes of a folder: its class and its image tower's."""
    trunk = getattr(theirs.visual, "trunk", None)
    return f"{type(theirs).__name__} on {'a timm ' * (trunk is not None)}{type(trunk or theirs.visual).__name__}"


def test_a_run_of_the_default_towers_loads_in_both(torch, run, tmp_path, monkeypatch, capsys):
    model = inference.load(run / "workdir")
    assert model.towers["image"].config.patch_bias
    for target in ("hf", "open_clip"):
        arguments = (f"--ckpt={run / 'workdir'}", f"--format={target}", f"--out={tmp_path / target}")
        status, printed = call(monkeypatch, capsys, "export.py", *arguments)
        assert status == 0, printed.err
    assert in_transformers(torch, model, tmp_path / "hf") == "CLIPModel"
    in_open_clip(torch, model, tmp_path / "open_clip")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_clip_loads_in_both(torch, tokenizer, tmp_path, activation):
    stack = dataclasses.replace(STACK, activation=activation, norm_eps=1e-5)
    model = made(dataclasses.replace(IMAGE, blocks=stack), dataclasses.replace(TEXT, blocks=stack), tokenizer)
    for target, write in (("hf", exporting.write_hf), ("open_clip", exporting.write_open_clip)):
        (tmp_path / target).mkdir()
        write(model, tmp_path / target, print)
    assert in_transformers(torch, model, tmp_path / "hf") == "CLIPModel"
    in_open_clip(torch, model, tmp_path / "open_clip")


def test_our_own_format_gives_back_the_same_features(tokenizer, tmp_path):
    model = made(IMAGE, TEXT, tokenizer)
    exporting.write_safetensors(model, tmp_path, print)
    name, networks, params = imported(tmp_path)
    assert name == "agriclip_jax"
    z, t = ours(model)
    images = np.stack([views.eval_view(photo, model.view) for photo in photos(model.image_size)])
    tokens = tokenizer.encode(CAPTIONS, TEXT.context_length)
    scale = np.exp(model.params["logit_scale"])
    check_both(networks, params, images, tokens, z, t, scale * z @ t.T, of=(name, "agriclip_jax before its export", ""))


@pytest.mark.parametrize(
    "view",
    [views.EvalView(32, share=0.8), views.EvalView(32, "squash", filter="bilinear")],
    ids=["the centre of a larger square", "squashed"],
)
def test_photos_are_prepared_alike_in_both(torch, tokenizer, tmp_path, view):
    model = made(IMAGE, TEXT, tokenizer)
    model.view = view
    for target, write in (("hf", exporting.write_hf), ("open_clip", exporting.write_open_clip)):
        (tmp_path / target).mkdir()
        write(model, tmp_path / target, print)
    in_transformers(torch, model, tmp_path / "hf")
    in_open_clip(torch, model, tmp_path / "open_clip")


def test_siglip_loads_in_transformers(torch, siglip_tokenizer, tmp_path):
    stack = dataclasses.replace(STACK, activation="gelu_tanh")
    image, words = (
        dataclasses.replace(IMAGE, blocks=stack, **SIGLIP),
        dataclasses.replace(TEXT, blocks=stack, **SIGLIP_TEXT),
    )
    model = made(image, words, siglip_tokenizer, logit_bias=-7.0)
    exporting.write_hf(model, tmp_path, print)
    assert in_transformers(torch, model, tmp_path, padding="max_length") == "SiglipModel"


@pytest.mark.parametrize(
    "image",
    [
        dataclasses.replace(IMAGE, blocks=dataclasses.replace(STACK, layer_scale=0.5), pre_norm=False, patch_bias=True),
        dataclasses.replace(IMAGE, blocks=dataclasses.replace(STACK, mlp=200, heads=8, activation="gelu_tanh")),
        resnet.ResNetConfig((1, 2, 1, 1), width=16, heads=8, image_size=64, embed_dim=24),
    ],
    ids=["LayerScale", "odd sizes", "ResNet"],
)
def test_open_clips_own_towers(torch, tokenizer, tmp_path, image):
    model = made(image, dataclasses.replace(TEXT, blocks=dataclasses.replace(STACK, layer_scale=0.3)), tokenizer)
    exporting.write_open_clip(model, tmp_path, print)
    assert not hasattr(in_open_clip(torch, model, tmp_path).visual, "trunk")


def test_a_text_tower_of_siglips_beside_open_clips_image_tower(torch, siglip_tokenizer, tmp_path):
    model = made(IMAGE, dataclasses.replace(TEXT, **SIGLIP_TEXT | {"embed_dim": 24}), siglip_tokenizer, logit_bias=-2.0)
    exporting.write_open_clip(model, tmp_path, print)
    in_open_clip(torch, model, tmp_path)


@pytest.mark.parametrize(
    "image",
    [
        vit.ViTConfig(encoders.block_config("Ti"), 16, 224, 24, **DINO),
        dataclasses.replace(resnet.CONFIGS["ResNet50"], image_size=64, embed_dim=24, unroll=1),
    ],
    ids=["DINO", "ResNet-50"],
)
def test_an_aligned_tower_is_one_of_timms(torch, tokenizer, tmp_path, image):
    model = made(image, TEXT, tokenizer)
    exporting.write_open_clip(model, tmp_path, print)
    theirs = in_open_clip(torch, model, tmp_path)
    assert theirs.visual.head.proj.bias is not None


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (DINO | {"registers": 4, "layer_scale": 0.5}, "vit_small_patch14_reg4_dinov2"),
        (DINO | {"layer_scale": 0.5}, "vit_small_patch14_dinov2"),
        (DINO | {"layer_scale": 0.5, "activation": "swiglu"}, "vit_giant_patch14_dinov2"),
        (SIGLIP | {"activation": "gelu_tanh"}, "vit_base_patch32_siglip_256"),
        (SIGLIP | {"activation": "gelu", "embed_dim": 24}, "vit_base_patch16_siglip_224"),
    ],
)
def test_timms_other_towers_at_small_width(torch, tokenizer, siglip_tokenizer, tmp_path, monkeypatch, image, name):
    pytest.importorskip("open_clip")
    import timm

    blocks = {key: image[key] for key in ("layer_scale", "activation") if key in image}
    stack = dataclasses.replace(STACK, **blocks)
    image = dataclasses.replace(
        IMAGE, blocks=stack, **{key: value for key, value in image.items() if key not in blocks}
    )
    # The names stand for towers of full size; here for small ones, made by the same function of timm.
    create, ratio = timm.create_model, 2.0 if stack.activation != "swiglu" else 4.0
    small = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": ratio, "img_size": 32, "patch_size": 8}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **small))
    monkeypatch.setattr(timm_names, "find", lambda config: name)
    if image.pool == "attention":
        words = dataclasses.replace(TEXT, **SIGLIP_TEXT | {"embed_dim": image.embed_dim or 64})
        model = made(image, words, siglip_tokenizer, logit_bias=-5.0)
    else:
        model = made(image, TEXT, tokenizer)
    exporting.write_open_clip(model, tmp_path, print)
    assert type(in_open_clip(torch, model, tmp_path).visual.trunk).__name__ == "VisionTransformer"


def test_timms_names_stand_for_the_towers_that_the_table_says(torch):
    timm = pytest.importorskip("timm")
    activations = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "SiLU": "swiglu"}
    for key, name in timm_names.VITS.items():
        with torch.device("meta"):
            theirs = timm.create_model(name)
        block = theirs.blocks[0]
        up, is_gated = block.mlp.fc1.out_features, type(block.mlp).__name__ == "GluMlp"
        size = (theirs.embed_dim, len(theirs.blocks), block.attn.num_heads, up // 2 if is_gated else up)
        pool = {theirs: ours for ours, theirs in open_clip.TRUNK_POOLS.items()}[theirs.global_pool]
        activation = activations[type(block.mlp.act).__name__]
        sides = theirs.patch_embed.patch_size[0], theirs.patch_embed.img_size[0]
        assert key == (size, *sides, pool, activation, hasattr(block.ls1, "gamma"), theirs.num_reg_tokens), name
        assert block.norm1.eps == 1e-6 and theirs.norm_pre.__class__.__name__ == "Identity"
        assert theirs.no_embed_class == bool(theirs.num_reg_tokens)
