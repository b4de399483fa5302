"""Read the protos with their comments, for the pages that are generated from them."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent
# Field numbers inside the descriptors, which make up a comment's path.
MESSAGES, ENUMS, SERVICES, MEMBERS = 4, 5, 6, 2


def described(*names: str) -> Iterator[FileDescriptorProto]:
    """Yield the files penstock/v1/NAME.proto, with comments, in the order of their names."""
    with tempfile.NamedTemporaryFile() as out:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", "--include_source_info"]
        paths = [f"penstock/v1/{name}.proto" for name in names]
        subprocess.run([*command, f"--descriptor_set_out={out.name}", *paths], check=True)
        found = {file.name: file for file in FileDescriptorSet.FromString(Path(out.name).read_bytes()).file}
    return (found[path] for path in paths)


class Comments:
    """The comments of one file, by the path of their element."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._texts = {
            tuple(location.path): location.leading_comments or location.trailing_comments
            for location in file.source_code_info.location
        }

    def at(self, *path: int) -> str:
        """Return the comment's lines without their indentation; empty where there is none."""
        return "\n".join(line.strip() for line in self._texts.get(path, "").strip().splitlines())
