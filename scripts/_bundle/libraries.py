"""Load every shared library of this Python's packages, each in a process of its own; print one line of JSON.

It runs in the bundle's environment, as text, so it imports nothing of its neighbours.
"""

import ctypes
import importlib.util
import json
import os
import re
import sysconfig
from pathlib import Path

OPTIONAL = {
    "numba/np/ufunc/tbbpool": "needs Intel's TBB, which numba uses where it is installed",
    "nvidia/cu[0-9]+/lib/libcufile_rdma": "needs the libraries of RDMA, which GPUDirect Storage uses where they are",
    "nvidia/nvshmem/lib/nvshmem_(bootstrap|transport)_": "is for a network or process manager that is not here",
    "nvidia_cutlass_dsl/.*/stubs/": "is for another machine",
    "torch_c_dlpack_ext/libtorch_c_dlpack_addon_": "is for another version of torch",
    "torchcodec/libtorchcodec_": "is for another version of FFmpeg; Penstock reads no videos",
    "cuda/core/.*_tensor_bridge": "finds torch's functions only where its own package imports it",
}
"""Libraries that their packages load only in some places, as regular expressions of their paths."""
WITHOUT_CUDA = {"torchvision/.*": "is built for CUDA; Penstock does not use it with torch's CPU build"}
MAX_NEEDED = 20
"""Libraries of other packages that one library may need loaded first."""


def main():
    root = Path(sysconfig.get_path("purelib"))
    optional = dict(OPTIONAL)
    if importlib.util.find_spec("torch"):
        import torch  # its libraries are where others look for them once it is loaded

        optional |= {} if torch.version.cuda else WITHOUT_CUDA
    found = sorted(path for path in root.rglob("*.so*") if path.is_file() and is_elf(path))
    by_name = {path.name: path for path in found}
    failures, expected = {}, {}
    for path in found:
        name = str(path.relative_to(root))
        if why := load_alone(path, by_name):
            known = next((reason for pattern, reason in optional.items() if re.match(pattern, name)), None)
            (failures if known is None else expected)[name] = known or why
    loaded = len(found) - len(failures) - len(expected)
    print(json.dumps({"loaded": loaded, "failures": failures, "expected": expected}))


def is_elf(path):
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def load_alone(path, by_name):
    """Return why a library does not load; empty where it does. A crash is a reason, too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        why = "it ended the process"
        try:
            why = load(path, by_name)
        finally:
            os.write(writer, why.encode()[:500])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as result:
        why = result.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return f"the process ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else why


def load(path, by_name):
    """Load a library, and before it those of other packages that it needs, as their own imports would do."""
    for _ in range(MAX_NEEDED):
        try:
            ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        except OSError as error:
            needed = re.match(r"(\S+): cannot open shared object file", str(error))
            other = by_name.pop(needed[1], None) if needed else None
            if other is None or other == path:
                return str(error)
            if why := load(other, by_name):
                return why
        else:
            return ""
    return "it needs too many other libraries"


if __name__ == "__main__":
    main()
