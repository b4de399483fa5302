"""The project's own scripts as modules, to be tried on copies of what they read."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """Return scripts/NAME as a module of its own. It runs nothing by itself."""
    module_name = f"penstock_script_{name.replace('-', '_')}"
    loader = SourceFileLoader(module_name, str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # no scripts/__pycache__
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module
