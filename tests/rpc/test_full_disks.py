"""A disk that is full: one line with cause, path and room, an exit code, and nothing that could be taken as whole."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rpc.fake_hub import hub
from tests.rpc.scripted_service import scripted_service
from tests.rpc.small_disk import Done, on_small_disk, with_small_files

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "service/penstock/demo_model"
PENSTOCK = [sys.executable, "-m", "penstock"]
pytestmark = pytest.mark.slow
WEIGHTS = bytes(2_000_000)
DEMO_FP8 = ROOT / "service/penstock/demo_model_fp8"
QUANTIZED = (DEMO_FP8 / "model.safetensors").stat().st_size
CHECKPOINT = sum(path.stat().st_size for path in DEMO_FP8.iterdir())
NEEDED = re.compile(r"(\d+\.\d) MB needed")
_FULL, _TOO_LARGE = "No space left on device", "File too large"
Place = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted_service(tmp_path_factory.mktemp("service"), [{"answer": "hi"}]) as address:
        yield address


def one_line(done: Done, *words: str) -> None:
    assert done.code == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("penstock: ")
    for word in words:
        assert word in line


def needed(done: Done) -> float:
    """Return the bytes that were said to be needed, rounded up to what is shown."""
    found = NEEDED.search(done.stderr)
    assert found, done.stderr
    return (float(found[1]) + 0.1) * 1e6


def test_a_download_that_will_not_fit_is_refused_before_it_begins(folder: Path) -> None:
    with hub({"config.json": b"{}", "a.safetensors": WEIGHTS}) as endpoint:
        environ = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf")}
        done = on_small_disk(folder, 1_000_000, [*PENSTOCK, "download", "--model", "org/m"], environ)
    one_line(done, f"{folder}/hf/hub has not enough space for org/m", "2.0 MB needed", "1.0 MB free", "HF_HOME")
    assert done.files == ()


def test_what_is_there_needs_no_room(folder: Path) -> None:
    with hub({"config.json": b"{}", "a.safetensors": WEIGHTS}) as endpoint:
        environ = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf")}
        again = f"{sys.executable} -m penstock download --model org/m"
        done = on_small_disk(folder, 3_000_000, ["sh", "-c", f"{again} && {again}"], environ)
    assert done.code == 0, done.stderr
    assert done.stdout.count("2 files") == 2


@pytest.mark.parametrize(("place", "cause"), [(on_small_disk, _FULL), (with_small_files, _TOO_LARGE)])
def test_a_download_that_fills_the_disk_leaves_no_half_file(place: Place, cause: str, folder: Path) -> None:
    with hub({"config.json": b"{}", "a.safetensors": WEIGHTS}, tells_sizes=False) as endpoint:
        environ = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf")}
        done = place(folder, 1_000_000, [*PENSTOCK, "download", "--model", "org/m"], environ)
    assert done.code == 1
    line = done.stderr.splitlines()[-1]  # after a line of progress for config.json
    assert line.startswith(f"penstock: org/m: a.safetensors: {folder}/hf/hub cannot be written: {cause} (")
    assert "free)" in line
    assert "Traceback" not in done.stderr
    assert not [name for name in done.files if "safetensors" in name or "incomplete" in name]


def test_a_checkpoint_that_will_not_fit_is_refused_before_it_is_made(folder: Path) -> None:
    done = on_small_disk(folder, 1_000_000, [*PENSTOCK, "quantize", str(DEMO), "out"])
    one_line(done, "out cannot be written: about ", "MB needed, 1.0 MB free")
    assert done.files == ()
    assert CHECKPOINT <= needed(done) <= 1.05 * CHECKPOINT


FILLED = [
    (on_small_disk, QUANTIZED // 2, _FULL),
    (on_small_disk, QUANTIZED + 12_000, _FULL),  # the weights fit, the tokenizer does not
    (with_small_files, QUANTIZED // 2, _TOO_LARGE),
]


@pytest.mark.parametrize(("place", "size", "cause"), FILLED)
def test_a_checkpoint_that_fills_the_disk_leaves_nothing(place: Place, cause: str, size: int, folder: Path) -> None:
    """As where others fill it while this is written: the room that is needed is there at first."""
    unknown = "import penstock.engine.vllm.fp8.write as w; w._check_space = lambda *_: None"
    command = [sys.executable, "-c", f"{unknown}; from penstock.__main__ import main; main()"]
    done = place(folder, size, [*command, "quantize", str(DEMO), "out"])
    one_line(done, "out cannot be written: ", cause, " free)", "nothing was left behind")
    assert done.files == ()
    assert CHECKPOINT <= needed(done) <= 1.05 * CHECKPOINT


LOAD = ["--seconds", "0.5", "--warm-up", "0", "--concurrency", "1", "--output-tokens", "2", "--until-end"]
FILES = {
    "bench": (["bench", *LOAD, "--json", "out.json", "--rows"], "out.json"),
    "trace": (["bench", *LOAD, "--save-trace", "out.jsonl"], "out.jsonl"),
    "eval": (["eval", "--questions", "6", "--modes", "fast", "--deadlines", "", "--json", "out.json"], "out.json"),
    "plot": (
        ["eval", "--questions", "6", "--budgets", "0,4", "--modes", "thinking", "--deadlines", "", "--plot", "out.png"],
        "out.png",
    ),
    "plan": (["plan", "--model", "Qwen3.5-397B-A17B-FP8", "--count", "8", "--png", "out.png"], "out.png"),
    "keys": (["keys", "new", "me", "--file", "out.yaml"], "out.yaml"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_result_that_cannot_be_written_names_the_file(name: str, folder: Path, service: str) -> None:
    arguments, file = FILES[name]
    (folder / file).write_text("")
    done = with_small_files(folder, 100, [*PENSTOCK, *arguments], {"PENSTOCK_TARGET": service})
    assert done.code in (1, 2)
    told = json.loads(done.stdout.splitlines()[-1])["error"]["message"] if "--json" in arguments else done.stderr
    assert f"{file} cannot be written: {_TOO_LARGE} (" in told.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (folder / file).read_text() == "", "what was there is as it was"
    assert [one for one in done.files if not one.endswith(".lock")] == [file]


def test_a_full_disk_is_told_before_the_work(folder: Path, service: str) -> None:
    fill = "head -c 2000000 /dev/zero > fill 2> /dev/null; exec " + " ".join(PENSTOCK)
    for arguments in ("bench --json out.json", "bench --save-trace out.jsonl", "eval --json out.json", "pilot --quick"):
        done = on_small_disk(folder, 1_000_000, ["sh", "-c", f"{fill} {arguments}"], {"PENSTOCK_TARGET": service})
        assert done.code == 2, done.stderr
        assert "no space left" in " ".join((done.stdout + done.stderr).replace("│", " ").split())
        assert done.files == ("fill",)


def test_a_report_that_cannot_be_written_has_been_shown(folder: Path, tmp_path: Path) -> None:
    result = ROOT / "docs/pilot/pilot.json"
    done = on_small_disk(folder, 20_000, [*PENSTOCK, "pilot", "--report", str(result), "--out", "out"])
    assert done.code == 1
    assert "out/pilot.json cannot be written: No space left on device (" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip(), "an hour of measuring is not lost"
    assert done.files == ()


def test_a_service_that_cannot_say_that_it_is_ready_ends(folder: Path) -> None:
    (folder.parent / "replies.json").write_text(json.dumps([{"answer": "hi"}]))
    serve = ["serve", "--listen", "127.0.0.1:0", "--ready-file", "ready", "--set", "engine.kind=scripted"]
    serve += ["--set", f"engine.model={folder.parent / 'replies.json'}"]
    done = with_small_files(folder, 5, [*PENSTOCK, *serve])
    assert done.code == 1
    assert done.stderr.splitlines()[-1].startswith(
        "penstock: ready cannot be written: File too large (16 bytes needed, "
    )
    assert done.files == ()


AUDIT = """
import logging, os, pathlib, time
from penstock.telemetry.audit import audit_of
from penstock.config.security import AuditSettings
logging.basicConfig(format="%(message)s")
pathlib.Path("fill").write_bytes(bytes(150_000))
audit = audit_of(AuditSettings(file=pathlib.Path("audit.jsonl")))
def write(first, last):
    for number in range(first, last):
        audit.write("call", number=number, what="x" * 100)
    while not audit._lines.empty():
        time.sleep(0.01)
write(0, 2000)
os.remove("fill")
write(2000, 2100)
audit.close()
print(open("audit.jsonl").read(), end="")
"""


def test_the_audit_log_goes_on_with_whole_lines_when_there_is_room_again(folder: Path) -> None:
    done = on_small_disk(folder, 300_000, [sys.executable, "-c", AUDIT])
    assert done.code == 0, done.stderr
    told = done.stderr.splitlines()
    assert told[0].startswith("audit log: write failed, ")
    assert "audit.jsonl cannot be written: No space left on device (" in told[0]
    assert len(told) < 20, "not a line for each line"
    assert "Traceback" not in done.stderr
    numbers = [json.loads(line)["number"] for line in done.stdout.splitlines()]
    assert numbers[-100:] == list(range(2000, 2100))


QUOTAS = """
import asyncio, logging, os, pathlib
from penstock.errors import ConfigError, Overloaded
from penstock.admission.quotas.days import SqliteDailyBudget
logging.basicConfig(format="%(message)s")
async def main():
    days = SqliteDailyBudget(pathlib.Path("q.db"))
    await days.reserve("a", "2026-01-01", "first", 5, 10**9)
    try:
        pathlib.Path("fill").write_bytes(bytes(10_000_000))
    except OSError:
        pass
    refused = 0
    for number in range(200):
        try:
            await days.reserve(f"caller {number}", "2026-01-01", str(number), 1, 10**9)
        except Overloaded as error:
            refused += 1
            print(error.message)
    print("refused", refused > 0, await days.spent("a", "2026-01-01"))
    os.remove("fill")
    print("again", await days.reserve("b", "2026-01-01", "last", 1, 10**9))
    await days.close()
asyncio.run(main())
"""


def test_counts_that_cannot_be_written_let_nobody_in_until_there_is_room(folder: Path) -> None:
    done = on_small_disk(folder, 200_000, [sys.executable, "-c", QUOTAS])
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["refused True 5", "again True"]
    assert done.stderr.splitlines()[0].startswith(
        "write of quotas.daily_file failed: q.db cannot be written: database or disk is full ("
    )


def test_a_full_disk_at_the_start_is_told(folder: Path) -> None:
    serve = [*PENSTOCK, "serve", "--listen", "127.0.0.1:0", "--set", "engine.kind=scripted"]
    fill = "head -c 2000000 /dev/zero > fill 2> /dev/null; exec "
    limits = "--set quotas.daily_file=q.db --set auth.keys_file=/dev/null --insecure"
    done = on_small_disk(folder, 1_000_000, ["sh", "-c", f"{fill} {' '.join(serve)} {limits}"])
    assert done.code in (1, 2), done.stdout
    assert "quotas.daily_file: q.db cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr


def test_stdout_on_a_full_disk_is_told(folder: Path) -> None:
    fill = "head -c 2000000 /dev/zero > fill 2> /dev/null; exec "
    done = on_small_disk(folder, 1_000_000, ["sh", "-c", f"{fill} {' '.join(PENSTOCK)} config show > out"])
    one_line(done, "cannot write the output: No space left on device")
