"""Which code this is, for what is made by it."""

import subprocess
from pathlib import Path

import agriclip_jax


def code_version() -> str:
    """Version of the package, with the commit where the source is a git checkout."""
    root = Path(agriclip_jax.__file__).parent.parent
    commit = ""
    if (root / ".git").exists():
        try:
            run = subprocess.run(
                ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
            )
            commit = run.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            commit = ""
    return agriclip_jax.__version__ + (f"+{commit}" if commit else "")
