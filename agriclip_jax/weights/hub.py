"""Where a model lies: a path of this machine, or a repository of the Hugging Face hub."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from agriclip_jax.errors import UserError
from agriclip_jax.weights.containers import ENDINGS

PREFIX = "hf:"

# Weights that are looked for, best first; else a repository may hold one other file with one of the endings.
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
BESIDE = ("*.json", "*.txt", "*.model", "*.gz")  # configurations and tokenizers, of which all are fetched


def local(spec: str) -> Path:
    """The file or folder of a specification, fetched into the hub's cache where it begins with "hf:".

    Args:
      spec: a path, or "hf:OWNER/NAME", of which one file is "hf:OWNER/NAME/FILE", with an optional "@REVISION".

    Raises:
      UserError: there is no such path, the repository can neither be reached nor lies in the cache, or it holds several
        models.
    """
    if not spec.startswith(PREFIX):
        path = Path(spec).expanduser()
        if not path.exists():
            raise UserError(f"there is no {spec}; give a file, a folder or {PREFIX}OWNER/NAME of the Hugging Face hub")
        return path
    place, _, revision = spec.removeprefix(PREFIX).partition("@")
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w.-]*))?", place)
    if not found:
        raise UserError(f"{spec}: a repository is named {PREFIX}OWNER/NAME, a file in it {PREFIX}OWNER/NAME/FILE")
    name, file = found.groups()
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UserError(f"{spec}: needs the package huggingface_hub: pip install -e '.[hub]'") from None
    fetch = functools.partial(hub.snapshot_download, name, revision=revision or None)
    try:
        files = hub.HfApi().list_repo_files(name, revision=revision or None)
        wanted = _weights([each for each in files if each == file] if file else files, spec)
        folder = Path(fetch(allow_patterns=[*BESIDE, *wanted]))
    except UserError:
        raise
    except Exception as error:  # the hub's library lets those of the libraries below it through
        reason = error
        try:
            folder = Path(fetch(local_files_only=True, allow_patterns=[]))  # none of which is asked to be there
        except Exception:
            raise UserError(
                f"{spec} cannot be fetched ({' '.join(str(reason).split())[:160]}) and is not in the cache; download "
                f"the files of https://huggingface.co/{name} elsewhere and give their folder instead"
            ) from reason
        wanted = _weights([file] if file else [each.name for each in folder.iterdir()], spec)
    return folder / wanted[0] if len(wanted) == 1 else folder


def _weights(files: Sequence[str], spec: str) -> list[str]:
    """Of a repository's files those that hold its weights once.

    Raises:
      UserError: there are none, or several models.
    """
    files = [file for file in files if "/" not in file]
    for ending in ENDINGS:
        if f"model{ending}.index.json" in files or f"pytorch_model{ending}.index.json" in files:
            return sorted(file for file in files if file.endswith(ending))
    best = [file for file in WEIGHTS if file in files] or sorted(file for file in files if file.endswith(ENDINGS))
    others = [file for file in best if file not in WEIGHTS]
    if not best or len(others) > 1:
        which = (
            f"several models; name one as {PREFIX}OWNER/NAME/FILE: {', '.join(others[:9])}" if best else "no weights"
        )
        raise UserError(f"{spec} holds {which}")
    return best[:1]
