"""Clients that this project did not write, each a program that runs all cases and prints what came of each, as JSON."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conformance.tools import NODE, ROOT, TOOLS, build_go, build_typescript, building

_HERE = Path(__file__).parent
_SOURCE = _HERE / "cpp/client.cc"
_CPP_ROOT = TOOLS / "grpc-cpp-root"
_COMPILE_SECONDS = 600
_RUN_SECONDS = 240


def run(command: list[str]) -> dict[str, str]:
    """Return the end of each case by its name."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    ends: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return ends


def _plan(target: str, authority: str, parallel: int) -> str:
    return json.dumps({"target": target, "ca": authority, "parallel": parallel})


def grpc_js(target: str, authority: str, parallel: int) -> list[str]:
    build_typescript()
    return [str(NODE), str(_HERE / "grpc-js.mjs"), _plan(target, authority, parallel)]


def connect(target: str, authority: str, parallel: int) -> list[str]:
    build_typescript()
    return [str(NODE), str(_HERE / "connect/client.mjs"), _plan(target, authority, parallel)]


def go(target: str, authority: str, parallel: int) -> list[str]:
    return [str(build_go() / "interop"), _plan(target, authority, parallel)]


def cpp(target: str, authority: str, parallel: int) -> list[str]:
    program = str(build_cpp())
    return ["env", f"LD_LIBRARY_PATH={':'.join(_libraries())}", program, target, authority, str(parallel)]


def _libraries() -> list[str]:
    """Folders of what is linked: unpacked packages' own, which the linker's cache does not know."""
    return sorted({str(path.parent) for path in _CPP_ROOT.rglob("lib*.so*")})


def build_cpp() -> Path:
    """Compile the C++ client into .tools, unless that is done; return the program."""
    with building("cpp"):
        return _build_cpp()


def _build_cpp() -> Path:
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in (_SOURCE, Path(__file__), *protos))).hexdigest()[:16]
    folder = TOOLS / "interop-cpp"
    program = folder / f"client-{state}"
    if program.exists():
        return program
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    root, libraries = _CPP_ROOT, _libraries()
    environment = {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": f"{root}/usr/bin:/usr/local/bin:/usr/bin:/bin"}
    names = [path.relative_to(ROOT / "protos").as_posix() for path in protos]
    plugin = _where("grpc_cpp_plugin", root)
    protoc = [_where("protoc", root), f"-I{ROOT / 'protos'}", f"-I{root}/usr/include", "-I/usr/include"]
    _compile(
        [*protoc, f"--cpp_out={folder}", f"--grpc_out={folder}", f"--plugin=protoc-gen-grpc={plugin}", *names],
        environment,
    )
    sources = [str(_SOURCE), *(str(path) for path in sorted(folder.rglob("generation*.cc")))]
    places = [f"-L{place}" for place in libraries] + [f"-Wl,-rpath-link,{place}" for place in libraries]
    # Debian's gRPC needs Abseil, which the compiled headers use too and pkg-config would name.
    flags = ["-std=c++17", "-O0", "-Wl,--copy-dt-needed-entries", f"-I{folder}", f"-I{root}/usr/include", "-pthread"]
    made = folder / "client"
    _compile(
        ["g++", *flags, *sources, "-o", str(made), *places, "-lgrpc++", "-lgrpc", "-lgpr", "-lprotobuf"], environment
    )
    made.rename(program)
    return program


def _where(name: str, root: Path) -> str:
    own = root / "usr/bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"no {name}: remove .tools/grpc-cpp.ready and run `make tools`"
    return found


def _compile(command: list[str], environment: dict[str, str]) -> None:
    niced = ["nice", "-n", "10", *command]
    done = subprocess.run(niced, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


Command = Callable[[str, str, int], list[str]]
CLIENTS: dict[str, tuple[Command, tuple[str, ...]]] = {
    "grpc-js": (grpc_js, ("node", "npm")),
    "connect-node": (connect, ("node", "npm")),
    "go": (go, ("go", "grpc-go")),
    "cpp": (cpp, ("grpc-cpp",)),
}
"""How each client is started, and what tools it needs."""
