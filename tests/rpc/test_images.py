"""Images over the wire: the Python client, the command line, a stream, a drained call, and GetModel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import penstock_client as pc
import pytest
from penstock.engine.scripted import Reply
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from tests.pictures import encoded, picture, png
from tests.rpc.conftest import Serve
from tests.rpc.scripted_service import scripted_service

PICTURE = picture(64, 64, "red")


@pytest.mark.parametrize(("form", "kind"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_the_client_reads_the_type_from_the_file(form: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(encoded(PICTURE, form))
    assert pc.ImagePart.from_file(file) == pc.ImagePart(file.read_bytes(), kind)
    assert pc.ImagePart.from_pil(PICTURE).mime_type == "image/png"


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"RIFF----WAVE"])
def test_the_client_refuses_other_formats_by_name(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.bin"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"other\.bin: must be a PNG, JPEG or WebP image"):
        pc.ImagePart.from_file(file)


async def test_stream_and_reply_count_the_same_image_tokens(serve: Serve) -> None:
    channel = await serve(Reply(match="left", answer="red"))
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    parts = [pb.Part(text="left"), pb.Part(image=pb.Image(mime_type="image/png", data=png(64, 64, "red")))]
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST),
    )
    reply = await stub.Generate(pb.GenerateRequest(spec=spec))
    events = [one.event async for one in stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec))]
    count = await stub.CountTokens(pb.CountTokensRequest(spec=spec))
    assert reply.usage.image_tokens == events[-1].finished.usage.image_tokens == count.image_tokens == 4
    assert reply.usage.prompt_tokens == count.prompt_tokens
    assert "".join(event.answer.text for event in events) == "red"


async def test_a_result_of_a_tool_may_be_an_image(serve: Serve) -> None:
    channel = await serve()
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    shown = pb.Part(image=pb.Image(mime_type="image/png", data=png(32, 32)))
    messages = [
        pb.Message(role=pb.ROLE_USER, content="draw"),
        pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(tool_call=pb.ToolCall(id="1", name="draw"))]),
        pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=pb.ToolResult(call_id="1", content=[shown]))]),
    ]
    spec = pb.GenerationSpec(messages=pb.Messages(messages=messages), tools=[pb.Tool(name="draw")])
    assert (await stub.CountTokens(pb.CountTokensRequest(spec=spec))).image_tokens == 1


async def test_an_unreadable_image_is_the_callers_fault_at_its_path(serve: Serve) -> None:
    channel = await serve()
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    parts = [pb.Part(text="a"), pb.Part(image=pb.Image(mime_type="image/png", data=png(64, 64)[:60]))]
    spec = pb.GenerationSpec(messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)]))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Generate(pb.GenerateRequest(spec=spec))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "parts[1].image" in (raised.value.details() or "")


async def test_the_model_tells_its_bounds_of_images(serve: Serve) -> None:
    card = await model_pb2_grpc.ModelServiceStub(await serve()).GetModel(model_pb2.GetModelRequest())
    assert (card.limits.max_images, card.limits.max_image_bytes) == (16, 8 * 1024 * 1024)
    assert (card.limits.max_image_pixels, card.limits.image_pixels) == (40_000_000, 4_194_304)
    assert next(row for row in card.profile if row.name == "images").enabled


@pytest.mark.slow
def test_the_command_line_sends_files(tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(png(64, 64, "red"))
    with scripted_service(tmp_path, []) as target:

        def penstock(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "penstock", *arguments, "--target", target]
            return subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=60, env=dict(os.environ)
            )

        asked = penstock("generate", "--image", str(file), "What is it?", "--json", "--no-stream")
        assert '"image_tokens": 4' in asked.stdout, asked.stderr
        missing = penstock("generate", "--image", "none.png", "What is it?")
        assert missing.returncode == 2
        assert "cannot read none.png: no such file or directory" in " ".join(missing.stderr.split())
        talked = penstock("chat", "--json", stdin=f"/image none.png\n/image {file}\nWhat is it?\nAnd now?\n")
        assert "cannot read none.png" in talked.stderr
        assert talked.stdout.count('"image_tokens": 4') >= 2, "the picture stays in the conversation"
