"""Where a model lies: a path of this machine, or a repository of the Hugging Face hub."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from agriclip_jax.errors import UserError

PREFIX = "hf:"

# Weights that are looked for, best first; of several others of an ending the first by name is taken.
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".npz")
BESIDE = ("*.json", "*.txt", "*.model", "*.gz")  # configurations and tokenizers, of which all are fetched


def local(spec: str) -> Path:
    """The file or folder of a specification, fetched into the hub's cache where it begins with "hf:".

    Args:
      spec: a path, or "hf:OWNER/NAME" with an optional "@REVISION".

    Raises:
      UserError: there is no such path, or the repository can neither be reached nor lies in the cache.
    """
    if not spec.startswith(PREFIX):
        path = Path(spec)
        if not path.exists():
            raise UserError(f"there is no {spec}; give a file, a folder or {PREFIX}OWNER/NAME of the Hugging Face hub")
        return path
    name, _, revision = spec.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{spec}: a repository is named {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UserError(f"{spec}: needs the package huggingface_hub: pip install 'agriclip-jax[hub]'") from None
    fetch = functools.partial(hub.snapshot_download, name, revision=revision or None)
    try:
        wanted = _weights(hub.HfApi().list_repo_files(name, revision=revision or None))
        return _model(Path(fetch(allow_patterns=[*BESIDE, *wanted])))
    except Exception as error:  # the hub's library lets those of the libraries below it through
        reason = error
    try:
        return _model(Path(fetch(local_files_only=True, allow_patterns=[])))  # none of which is asked to be there
    except Exception:
        raise UserError(
            f"{spec} cannot be fetched ({' '.join(str(reason).split())[:160]}) and is not in the cache; download the "
            f"files of https://huggingface.co/{name} elsewhere and give their folder instead"
        ) from reason


def _model(folder: Path) -> Path:
    """A repository in the cache, or of several models in it the one that is looked for first."""
    found = [name for name in WEIGHTS if (folder / name).is_file()]
    return folder / found[0] if len(found) > 1 else folder


def _weights(files: Sequence[str]) -> list[str]:
    """Of a repository's files those that hold its weights once."""
    for ending in ENDINGS:
        found = sorted(file for file in files if file.endswith(ending) and "/" not in file)
        if any(file.endswith(f"{ending}.index.json") for file in files):
            return found
        if found:
            return [next((name for name in WEIGHTS if name in found), found[0])]
    return []
