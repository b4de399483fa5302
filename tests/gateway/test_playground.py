"""The playground's page and its API: what is served, what may run in it, and to whom the service's load is shown."""

from __future__ import annotations

import ast
import asyncio
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import httpx
import penstock_gateway.playground
import pytest
from penstock.auth.api_keys import make
from penstock.config.schema import Config
from penstock.engine.scripted import Reply
from penstock_gateway.playground import HEADERS, queue, routes
from starlette.routing import Route

from tests.conformance.tools import NODE, needs_node
from tests.gateway.conftest import Gateway

STATIC = Path(penstock_gateway.playground.__file__).parent / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
PATHS = [route.path for route in routes() if isinstance(route, Route) and "/api/" not in route.path]
ELSEWHERE = [
    "/playground/",
    "/playground/../settings.py",
    "/playground/%2e%2e/settings.py",
    "/playground/__init__.py",
    "/playground/static/app.js",
    "/playground/app.js/x",
    "/playground/api/",
    "/index.html",
]


@pytest.fixture
async def page(gateway: Gateway) -> httpx.AsyncClient:
    """The playground in front of a service."""
    return await gateway(Reply(answer="a"))


async def test_every_file_is_served_with_its_type_and_a_strict_policy(page: httpx.AsyncClient) -> None:
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "": "text/html"}
    files = {file.name for file in STATIC.iterdir()} - {"index.html"}
    assert {path.removeprefix("/playground/") for path in PATHS} == files | {"/"}
    for path in PATHS:
        reply = await page.get(path)
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith(types[path.partition(".")[2]])
        again = await page.get(path, headers={"if-none-match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        for one in (reply, again):
            assert {name: one.headers.get(name) for name in HEADERS} == HEADERS


def test_the_policy_lets_only_our_own_files_run() -> None:
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.slow
async def test_nothing_else_is_served_and_nothing_can_be_written(page: httpx.AsyncClient) -> None:
    for path in ELSEWHERE:
        assert (await page.get(path)).status_code == 404, path
    for path in (*PATHS, "/playground/api/model", "/playground/api/load"):
        assert (await page.post(path)).status_code == 405, path


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed((STATIC / "index.html").read_text(encoding="utf-8"))
    return parser.found


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(elements: Any) -> None:
    for tag, attributes in elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "style"
        assert tag != "script" or attributes["src"] == "/playground/app.js"
        for name in ("src", "href"):
            assert re.fullmatch(r"/playground/[\w.]+|#\w+", attributes.get(name) or "#x"), attributes
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|\burl\(", text), file.name


def test_every_control_has_a_label_and_every_reference_a_target(elements: Any) -> None:
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    for tag, attributes in elements:
        if tag in ("select", "textarea") or (tag == "input" and attributes["type"] not in ("radio", "checkbox")):
            assert attributes["id"] in labels, attributes
        for name in ("for", "aria-describedby", "aria-labelledby"):
            assert all(one in ids for one in (attributes.get(name) or "").split()), attributes
    used = {found for script in SCRIPTS for found in re.findall(r"\$\(\"([\w-]+)\"\)", script.read_text("utf-8"))}
    assert used <= set(ids)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_html_or_code_of_text(script: Path) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\(\"(on|href)|"
        r"createContextualFragment|parseFromString|srcdoc|javascript:|localStorage"
    )
    assert not re.search(forbidden, script.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------- its own API


async def test_the_model_is_shown_with_what_the_controls_need(page: httpx.AsyncClient) -> None:
    reply = await page.get("/playground/api/model")
    card = reply.json()
    assert reply.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert reply.headers["cache-control"] == "no-store"
    assert card["model"]
    assert 0 < card["max_thinking_budget"] <= 4096
    assert card["images"]["enabled"] is True
    assert card["images"]["reason"]
    assert set(card["efforts"]) == {"none", "low", "medium", "high"}


async def test_the_load_is_shown_to_those_who_may_see_it(gateway: Gateway, tmp_path: Path) -> None:
    (seer, one), (other, two) = make("team-a"), make("team-b")
    callers = tmp_path / "callers.yaml"
    callers.write_text(json.dumps({"callers": {"team-a": {"permissions": ["diagnostics"]}}}))
    auth = {"keys": [entry.model_dump(mode="json") for entry in (one, two)], "callers_file": str(callers)}
    config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "auth": auth})
    page = await gateway(Reply(answer="a"), config=config)

    async def load(key: str | None) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await page.get("/playground/api/load", headers=headers)

    assert (await load(None)).status_code == 401
    refused = await load(other)
    assert (refused.status_code, refused.json().get("queue")) == (403, None)
    shown = await load(seer)
    assert shown.status_code == 200
    assert shown.json()["experts_reason"]
    assert queue.METRICS_URL in shown.json()["queue_reason"]


class _Metrics(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = b'penstock_queue_calls 7\npenstock_sequences_running{model="m"} 3.0\npenstock_other 5\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def metrics() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_the_queue_is_read_from_the_services_metrics(metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(queue.METRICS_URL, f"{metrics}/metrics")
    reader = queue.QueueReader()
    states = await asyncio.gather(*(reader.read() for _ in range(50)))
    assert states == [queue.QueueState({"queued_calls": 7, "running_sequences": 3})] * 50
    assert _Metrics.asked == ["/metrics"]  # one for all of them
    for wrong in ("http://127.0.0.1:1/metrics", "file:///etc/passwd", "http://[x/"):
        monkeypatch.setenv(queue.METRICS_URL, wrong)
        state = await queue.QueueReader().read()
        assert state.numbers is None
        assert state.reason is not None
        assert state.reason.startswith("the service's metrics cannot be read: ")


# --------------------------------------------------------------------------------------------------------- its scripts


def node(module: str, expression: str, given: object = None) -> Any:
    """The value of an expression over `m`, a module of the page, and `given`, in Node."""
    script = f"import * as m from {json.dumps((STATIC / module).as_uri())};\nconst given = {json.dumps(given)};\n"
    script += f"console.log(JSON.stringify({expression}) ?? 'null');"
    command = [str(NODE), "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_the_calculator_computes_as_python_does() -> None:
    good = ["(48 + 27) * 3", "2 ** 3 ** 2 / 4", "-2 ** 2", "1e3 * .5", "7 - -7", "((((1))))", "100 / 8 / 2", "2 * -3"]
    seen = node("calculator.js", "given.map((one) => m.calculate(one))", good)
    assert seen == [eval(one) for one in good]


@needs_node
def test_the_calculator_refuses_what_is_no_arithmetic() -> None:
    bad = ["", "1 +", "alert(1)", "1/0", "9**9**9**9", "(" * 5000, "1 2", "process.exit()", "constructor", "1" * 600]
    calls = [json.dumps({"expression": one}) for one in bad] + ["{}", "null", "[", '{"expression": {"a": 1}}']
    seen = node("calculator.js", "given.map((one) => m.answer('calculator', one))", calls)
    assert all(one.startswith("error: ") for one in seen), seen
    assert node("calculator.js", "m.answer('rm', '{}')") == "error: there is no tool rm"


@needs_node
def test_events_are_read_wherever_they_are_cut() -> None:
    text = 'id: v1:chat:u:g:1:a:b\ndata: {"a":1}\n\n: comment\r\n\r\ndata: x\r\ndata: ÿ\r\n\r\nevent: y\ndata\n\n'
    expected = [{"id": "v1:chat:u:g:1:a:b", "data": data} for data in ('{"a":1}', "x\nÿ", "")]
    cut = """given.map((_, size) => {
      const parser = new m.EventParser(), found = [], text = given.join("");
      for (let at = 0; at < text.length; at += size + 1) found.push(...parser.push(text.slice(at, at + size + 1)));
      return found;
    })"""
    assert node("sse.js", cut, list(text)) == [expected] * len(text)


LONG = "I add the numbers one by one, and check each sum. " * 4


@pytest.mark.slow
@needs_node
async def test_the_page_asks_steers_and_goes_on_after_a_cut(gateway: Gateway) -> None:
    replies = (
        Reply(match="long", thought=LONG, answer="done", step_seconds=0.02),
        Reply(match="short", thought="hm", answer="yes"),
    )
    page = await gateway(*replies)
    node = await asyncio.create_subprocess_exec(
        str(NODE),
        str(Path(__file__).parent / "playground.mjs"),
        str(STATIC),
        str(page.base_url).rstrip("/"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(node.communicate(), 120)
    assert node.returncode == 0, err.decode()
    seen = json.loads(out)
    assert (seen["plain"]["thought"], seen["plain"]["answer"]) == ("hm", "yes")
    assert seen["plain"]["thought_ended"] == {"kind": "thought_ended", "outcome": "natural_end", "tokens": 2}
    assert seen["plain"]["usage"]["usage"] == {"prompt": 26, "cached": 0, "thought": 2, "answer": 4, "output": 6}
    assert seen["plain"]["result"]["usd"] > 0
    for name, outcome in (("now", "finished_by_client"), ("budget", "budget_reached"), ("cancel", "cancelled")):
        assert seen[name]["steered"]["applied"], name
        assert seen[name]["result"]["outcome"] == outcome
        assert LONG.startswith(seen[name]["thought"])
        assert len(seen[name]["thought"]) < len(LONG)
    assert seen["now"]["answer"] == "done"
    assert seen["budget"]["steered"]["thinking_budget"] == len(seen["budget"]["thought"]) == 60
    assert (seen["cancel"]["answer"], seen["cancel"]["finish"]["reason"]) == ("", "cancelled")
    assert (seen["cut"]["thought"], seen["cut"]["answer"]) == (LONG, "done")
    assert seen["cut"]["lost"][0] == 1
    assert seen["cut"]["lost"][-1] == 0
    assert seen["late"]["status"] == seen["stranger"]["status"] == 404
    assert seen["refused"]["status"] == 400
    assert "exceed the window" in seen["refused"]["message"]


HOSTILE = "it's `back` \"quoted\" $(touch x) ${y} \\ %s \n\t\u2028 </script> ünïcödé 🙂 '''"
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": HOSTILE}],
    "stream": True,
    "temperature": 0,
    "thinking_budget": 5,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": False}}],
}


@needs_node
def test_the_request_as_a_command_is_the_request(tmp_path: Path) -> None:
    text = node("snippets.js", "m.curl('http://h', given)", BODY)
    script = f'curl() {{ printf "%s\\n" "${{@: -1}}"; }}\n{text}\n'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == BODY
    assert not list(tmp_path.iterdir())


@needs_node
def test_the_request_as_python_is_the_request() -> None:
    tree = ast.parse(node("snippets.js", "m.python('http://h', given)", BODY))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith("create"))
    seen = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert seen.pop("extra_body") | seen == BODY


@needs_node
def test_the_request_as_go_is_the_request() -> None:
    text = node("snippets.js", "m.go('http://h', given)", BODY)
    _, raw, rest = text.split("`")
    assert json.loads(raw) == BODY
    assert "http://h/v1/chat/completions" in rest


@needs_node
def test_the_load_of_the_experts_is_said_in_words_and_colours() -> None:
    even = {"layer_index": 0, "expert_token_counts": [4, 4], "imbalance": 1.0, "hot_experts": []}
    worst = {"layer_index": 7, "expert_token_counts": [8, 0], "imbalance": 2.0, "hot_experts": [0]}
    load = {"window_seconds": 60.0, "token_count": 8, "layers": [even, worst]}
    said = node("experts.js", "m.describe(given)", load)
    assert "2 experts in 2 layers over 60 s: 8 tokens" in said
    assert "Layer 7 is the least even: its busiest expert has 2.00 times the mean" in said
    idle, mean, hot, hotter = node("experts.js", "[0, 1, 2, 9].map(m.colourOf)")
    assert sum(idle) > sum(mean) > sum(hot)
    assert hot == hotter


@needs_node
def test_costs_are_those_of_the_tier() -> None:
    tiers = [
        {
            "up_to_prompt_tokens": 100,
            "input_usd_per_million": 1,
            "cached_usd_per_million": 0.5,
            "output_usd_per_million": 2,
        },
        {
            "up_to_prompt_tokens": None,
            "input_usd_per_million": 3,
            "cached_usd_per_million": 3,
            "output_usd_per_million": 4,
        },
    ]
    small, large = {"prompt": 100, "cached": 50, "output": 10}, {"prompt": 101, "output": 1}
    seen = node("format.js", "[m.costOf(given[0], given[1]), m.costOf(given[0], given[2])]", [tiers, small, large])
    assert seen == pytest.approx([95e-6, 307e-6])
    assert node("format.js", "m.costOf([], { output: 5 }) ?? 'none'") == "none"
    assert node("format.js", "[0, 50, 100].map((at) => m.budgetAt(at, 4096))") == [0, 64, 4096]
