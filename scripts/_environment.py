"""Importing this runs the importing script with the environment's Python, whichever Python has started it.

The scripts need packages that only the environment has. `make` starts them with its Python; who starts one by its
path, as the documentation says, need not know about it.
"""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_ENVIRONMENTS = [_ROOT / name for name in (".venv", ".venv-gpu")]


def _use() -> None:
    """Replace this process where its Python is of neither environment. Exits with 1 where there is none yet."""
    if Path(sys.prefix).resolve() in _ENVIRONMENTS:
        return
    for place in _ENVIRONMENTS:
        python = place / "bin" / "python"
        if (place / "ready").exists() and python.exists():
            os.execv(python, [str(python), *sys.argv])
    sys.exit(f"{Path(sys.argv[0]).name}: the environment is not there yet; run `make setup` first")


_use()
