"""A trained model ready to use: images and texts to embeddings."""

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from agriclip_jax import mesh as meshes
from agriclip_jax import recipe
from agriclip_jax.checkpoint import Checkpoints
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_record
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
        jit = partial(jax.jit, out_shardings=NamedSharding(self.mesh, PartitionSpec()))
        self._embed_images = jit(lambda p, x: image(p, image(p, x).pooled, method="embed"))
        self._embed_texts = jit(lambda p, x: text(p, text(p, x), method="embed"))
        self._attention = jit(lambda p, x: image(p, x, method="attention"))

    def at(self, params: dict[str, Any], step: int) -> "Model":
        """The same model later in its run, without compiling anew."""
        later = copy.copy(self)
        later.params, later.step = params, step
        return later

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """L2-normalised float32 [n, dim] of uint8 [n, size, size, 3]; any n."""
        return self._in_batches(self._embed_images, self.params["image"], images, self.batch)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised float32 [n, dim] of n texts; those too long are cut."""
        tokens = self.tokenizer.encode(list(texts), self.config.text.context_length)
        return self._in_batches(self._embed_texts, self.params["text"], tokens, TEXT_BATCH)

    def attention(self, images: np.ndarray) -> np.ndarray:
        """Where the pooled feature looks: float32 [n, heads, rows, columns] of uint8 [n, size, size, 3]."""
        return self._in_batches(self._attention, self.params["image"], images, self.batch)

    def alone(self) -> "Model":
        """The same model on one device of this process, so that a process may use it without the others.

        Every process must ask at the same point: the parameters are gathered.
        """
        whole = jax.jit(lambda p: p, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(self.params)
        mesh = Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), meshes.AXES)
        params = jax.tree.map(lambda x: jax.device_put(np.asarray(x), NamedSharding(mesh, PartitionSpec())), whole)
        return dataclasses.replace(self, params=params, mesh=mesh)

    @property
    def image_size(self) -> int:
        """Side of the images it takes, pixels."""
        return self.config.image_size

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before a softmax: exp of the parameter."""
        return float(np.exp(jax.device_get(self.params["logit_scale"])))

    @property
    def code_version(self) -> str:
        """Version of the package, with the commit where the source is a git checkout."""
        return code_version()

    def _in_batches(self, function, params: Any, rows: np.ndarray, batch: int) -> np.ndarray:
        parts = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        batch = -(-batch // parts) * parts
        sharding = meshes.batch_sharding(self.mesh)
        results = []
        for start in range(0, max(len(rows), 1), batch):
            part = rows[start : start + batch]
            padded = np.zeros((batch, *rows.shape[1:]), rows.dtype)
            padded[: len(part)] = part
            array = jax.make_array_from_callback(padded.shape, sharding, lambda index, padded=padded: padded[index])
            results.append(np.asarray(function(params, array))[: len(part)])
        return np.concatenate(results)


def load(workdir: str | Path, *, step: int | str | None = None, use: str = "student") -> Model:
    """The model of a run.

    Args:
      workdir: of the run.
      step: of the checkpoint: a number, "best" for the one that scored highest on validation, `None` for the newest.
      use: "student", or "teacher" for the image tower that is the student's moving average.

    Raises:
      UserError: when the folder is no workdir, has no such checkpoint, or has no teacher.
    """
    workdir = Path(workdir)
    if use not in ("student", "teacher"):
        raise UserError(f"--use: {use!r} is neither student nor teacher")
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir} is not the workdir of a run: it holds no config.json; train one with agriclip_jax.main"
        )
    config = ConfigDict(read_record(workdir / "config.json", "image", "text", "checkpoint"))
    tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint yet; train longer, or set config.checkpoint.every")
    checkpoints = Checkpoints(workdir / "checkpoints", latest=config.checkpoint.keep)
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
    try:
        towers = recipe.towers(config, tokenizer)
        _, init = recipe.learner(config, towers)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir / 'config.json'} is damaged or of another version of agriclip_jax ({error}); restore it, or "
            "train anew"
        ) from error
    mesh = meshes.make("auto")
    shapes = jax.eval_shape(init, jax.random.key(0))
    whole = NamedSharding(mesh, PartitionSpec())
    abstract = lambda tree: jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), tree)  # noqa: E731
    params = checkpoints.restore_item(step, "params", abstract(shapes.params))
    if use == "teacher":
        if "image" not in shapes.teacher:
            raise UserError(f"{workdir} has no teacher: its objectives train none; give --use=student")
        params |= {"image": checkpoints.restore_item(step, "teacher", abstract(shapes.teacher))["image"]}
    checkpoints.close()
    return Model(config, towers, params, tokenizer, mesh, workdir, step, use)
