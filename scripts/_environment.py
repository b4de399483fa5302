"""Run the importing script with the environment's Python, whichever Python has started it.

The scripts need packages that only the environment has. `make` starts them with its Python; a user who starts one by
its path, as the documentation says, need not know about the environment.
"""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_ENVIRONMENTS = [_ROOT / name for name in (".venv", ".venv-gpu")]


def _use() -> None:
    """Replace this process where its Python is of neither environment.

    An environment may be a symbolic link to that of another checkout. Exits with 1 where there is no environment yet,
    or where its Python does not belong to it.
    """
    if Path(sys.prefix).resolve() in [place.resolve() for place in _ENVIRONMENTS]:
        return
    script = Path(sys.argv[0]).name
    for place in _ENVIRONMENTS:
        python = place / "bin" / "python"
        if (place / "ready").exists() and python.exists():
            if Path(sys.executable) == python:  # Started from here already: another start would be the same again.
                sys.exit(f"{script}: {python} belongs to {sys.prefix}, not to {place}; run `make setup` again")
            os.execv(python, [str(python), *sys.argv])
    sys.exit(f"{script}: the environment is not there yet; run `make setup` first")


_use()
