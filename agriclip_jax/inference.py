"""A trained model ready to use: images and texts to embeddings."""

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from agriclip_jax import config as configs
from agriclip_jax import mesh as meshes
from agriclip_jax import peft, recipe, rules
from agriclip_jax.checkpoint import Checkpoints
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.data.views import EvalView
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError
from agriclip_jax.version import code_version

TEXT_BATCH = 256


@dataclasses.dataclass
class Model:
    """A two-tower model.

    Attributes:
      config: of its run.
      towers: "image" and "text".
      params: "image", "text" and "logit_scale"; arrays on `mesh`.
      tokenizer: of its text tower.
      mesh: images are spread over its `data` and `fsdp` axes.
      workdir: of its run.
      step: updates made.
      use: "student" or "teacher": whose image tower it is.
      batch: images embedded at once, so that one compilation serves any number.
    """

    config: ConfigDict
    towers: dict[str, Network]
    params: dict[str, Any]
    tokenizer: Tokenizer
    mesh: Mesh
    workdir: Path
    step: int
    use: str = "student"
    batch: int = 64

    def __post_init__(self):
        image, text = self.towers["image"], self.towers["text"]
        # Every process gets every row, so that metrics need no further communication.
        jit = functools.partial(jax.jit, out_shardings=NamedSharding(self.mesh, PartitionSpec()))
        self._embed_images = jit(lambda p, x: image(p, image(p, x).pooled, method="embed"))
        self._embed_texts = jit(lambda p, x: text(p, text(p, x), method="embed"))
        self._project_texts = jit(lambda p, x: text(p, text(p, x), method="project"))
        self._look = jit(lambda p, x: _features_and_embeddings(image, p, x))
        self._attention = jit(lambda p, x: image(p, x, method="attention"))
        self._dense = jit(lambda p, x: image(p, x, method="dense"))

    def at(self, params: dict[str, Any], step: int) -> "Model":
        """The same model later in its run, without compiling anew."""
        later = copy.copy(self)
        later.params, later.step = params, step
        vars(later).pop("fingerprint", None)
        return later

    def look(self, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Features float32 [n, width] and L2-normalised embeddings float32 [n, dim] of at most `batch` images.

        uint8 [n, size, size, 3]; returns before they are computed, so that the next ones can be prepared meanwhile.
        """
        features, embeddings = self._look(self.params["image"], self._placed(images, self.batch))
        return features[: len(images)], embeddings[: len(images)]

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """L2-normalised float32 [n, dim] of uint8 [n, size, size, 3]; any n."""
        return self._in_batches(self._embed_images, self.params["image"], images, self.batch)

    def embed_texts(self, texts: Sequence[str], *, normalise: bool = True) -> np.ndarray:
        """float32 [n, dim] of n texts, L2-normalised unless told otherwise; texts that are too long are cut."""
        tokens = self.tokenizer.encode(list(texts), self.config.text.context_length)
        function = self._embed_texts if normalise else self._project_texts
        return self._in_batches(function, self.params["text"], tokens, TEXT_BATCH)

    def attention(self, images: np.ndarray) -> np.ndarray:
        """Where the pooled feature looks: float32 [n, heads, rows, columns] of uint8 [n, size, size, 3]."""
        return self._in_batches(self._attention, self.params["image"], images, self.batch)

    def dense(self, images: np.ndarray) -> np.ndarray:
        """An embedding of each patch: L2-normalised float32 [n, rows, columns, dim] of uint8 [n, size, size, 3]."""
        return self._in_batches(self._dense, self.params["image"], images, self.batch)

    def alone(self) -> "Model":
        """The same model on one device of this process, so that a process may use it without the others.

        Every process must ask at the same point: the parameters are gathered.
        """
        mesh = Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), meshes.AXES)
        place = NamedSharding(mesh, PartitionSpec())
        params = jax.tree.map(lambda x: jax.device_put(x, place), self._whole())
        return dataclasses.replace(self, params=params, mesh=mesh)

    @property
    def image_size(self) -> int:
        """Side of the images it takes, pixels."""
        return self.config.image_size

    @property
    def view(self) -> EvalView:
        """How photos are prepared for it."""
        return recipe.eval_view(self.config)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before a softmax: exp of the parameter."""
        return float(np.exp(jax.device_get(self.params["logit_scale"])))

    @functools.cached_property
    def fingerprint(self) -> str:
        """What decides its features and embeddings, hashed: parameters, towers, tokenizer and image size."""
        digest = hashlib.sha256()
        towers = {tower: repr(self.towers[tower].config) for tower in ("image", "text")}
        said = {"towers": towers, "dtype": self.config.dtype, "image_size": self.image_size}
        digest.update(json.dumps(said, sort_keys=True).encode())
        digest.update(self.tokenizer.fingerprint.encode())
        add_parameters(digest, self._whole())
        return digest.hexdigest()

    @property
    def code_version(self) -> str:
        """Version of the package, with the commit where the source is a git checkout."""
        return code_version()

    def _whole(self) -> dict[str, Any]:
        """The parameters on the host, gathered: every process must ask at the same point."""
        params = {name: self.params[name] for name in recipe.OF_A_MODEL if name in self.params}
        return meshes.gathered(params, self.mesh)

    def _in_batches(self, function: Callable, params: Any, rows: np.ndarray, batch: int) -> np.ndarray:
        results = []
        for start in range(0, max(len(rows), 1), batch):
            part = rows[start : start + batch]
            results.append(np.asarray(function(params, self._placed(part, batch)))[: len(part)])
        return np.concatenate(results)

    def _placed(self, rows: np.ndarray, batch: int) -> jax.Array:
        """The rows on the mesh, filled up with zeros to a batch that it divides."""
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        padded = np.zeros((-(-batch // parts) * parts, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        sharding = meshes.batch_sharding(self.mesh)
        return jax.make_array_from_callback(padded.shape, sharding, lambda index: padded[index])


def add_parameters(digest: Any, params: Any) -> None:
    """Adds paths, types, shapes and values of a tree of arrays on the host to a hash."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)


def _features_and_embeddings(tower: Network, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = tower(params, images).pooled
    return features.astype(jnp.float32), tower(params, features, method="embed")


def load(workdir: str | Path, *, step: int | str | None = None, use: str = "student") -> Model:
    """The model of a run.

    Args:
      workdir: of the run.
      step: of the checkpoint: a number, "best" for the one that scored highest on validation, `None` for the newest.
      use: "student", or "teacher" for the image tower that is the student's moving average.

    Raises:
      UserError: when the folder is no workdir, has no such checkpoint, or has no teacher; or when it keeps only what
        it trained (`config.peft`) and the model it began with is gone or another.
    """
    workdir = Path(workdir)
    if use not in ("student", "teacher"):
        raise UserError(f"--use: {use!r} is neither student nor teacher")
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir} is not the workdir of a run: it holds no config.json; train one with agriclip_jax.main, or "
            "make one of a model of others with tools/import_weights.py"
        )
    config = configs.read(workdir)
    tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint yet; train longer, or set config.checkpoint.every")
    try:
        learner, init = recipe.learner(config, tokenizer)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir / 'config.json'} is damaged or of another version of agriclip_jax ({error}); restore it, or "
            "train anew"
        ) from error
    shapes = jax.eval_shape(init, jax.random.key(0))
    without = peft.resting(config.peft, rules.flatten(shapes.params))
    checkpoints = Checkpoints(workdir / "checkpoints", latest=config.checkpoint.keep, without=without)
    have = ", ".join(map(str, checkpoints.steps())) or "none"
    if step == "best":
        found = checkpoints.best()
        if found is None:
            raise UserError(f"{workdir} was never scored on a validation split, so none is best; it has: {have}")
    else:
        found = checkpoints.latest() if step is None else int(step) if str(step).isdecimal() else None
        if found not in checkpoints.steps():
            asked = "the newest step" if step is None else f"step {step}"
            raise UserError(f"{workdir} holds no checkpoint of {asked}; it has: {have}")
    step = found
    meshes.keep_compiled()
    mesh = meshes.make("auto")
    whole = NamedSharding(mesh, PartitionSpec())
    abstract = lambda tree: jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), tree)  # noqa: E731
    general = {}
    if without:
        from agriclip_jax import initial  # which loads runs by this module

        general = initial.general(workdir, config, shapes.params, jax.tree.map(lambda _: whole, shapes.params))
    params = learner.effective(checkpoints.restore_item(step, "params", abstract(shapes.params), general))
    if use == "teacher":
        if "image" not in shapes.teacher:
            raise UserError(f"{workdir} has no teacher: its objectives train none; give --use=student")
        params |= {"image": checkpoints.restore_item(step, "teacher", abstract(shapes.teacher))["image"]}
    checkpoints.close()
    return Model(config, dict(learner.towers), params, tokenizer, mesh, workdir, step, use)
