"""The playground in a real browser: ask, steer, stop, a cut network, the tool, both views; by mouse and by keyboard."""

from __future__ import annotations

import base64
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.engine.scripted import Reply, ScriptedEngine

from tests.browser.devtools import Page, browser
from tests.gateway.conftest import gateway_to, service
from tests.pictures import png
from tests.rpc.proxy import Proxy, proxied

ROOT = Path(__file__).parents[2]
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
pytestmark = [pytest.mark.needs("chromium", "npm"), pytest.mark.full]

LONG = "I add the numbers one by one, and I check each sum before I go on to the next one. " * 20
CALL = (
    "<tool_call>\n<function=calculator>\n<parameter=expression>\n(48 + 27) * 3\n</parameter>\n</function>\n</tool_call>"
)
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script> **bold** [a](javascript:alert(3))"
REPLIES = (
    Reply(match="evil", thought=EVIL, answer=EVIL),
    Reply(match="225", thought="The tool says it.", answer="It is 225."),
    Reply(match="use the tool", thought="I need a tool.", answer=f"\n\n{CALL}"),
    Reply(match="long answer", thought="", answer=LONG, step_seconds=0.05),
    Reply(match="slow", thought=LONG, answer="The sum is 126, as I have checked.", step_seconds=0.05),
    Reply(thought="48 + 27 = 75; 75 + 36 = 111; 111 + 15 = 126.", answer="The sum is 126.", step_seconds=0.005),
)


@pytest.fixture
async def network() -> AsyncIterator[Proxy]:
    """The way from the browser to the gateway."""
    async with (
        service(ScriptedEngine(REPLIES)) as target,
        gateway_to(target) as address,
        proxied(address.removeprefix("http://")) as proxy,
    ):
        yield proxy


@pytest.fixture
def url(network: Proxy) -> str:
    return f"http://{network.target}/"


@pytest.fixture
async def page(tmp_path: Path, url: str) -> AsyncIterator[Page]:
    async with browser(tmp_path / "profile") as made:
        await ready(made, url)
        yield made
        assert made.messages == []
        assert all(address.startswith((url, "data:", "about:")) for address in made.requests), made.requests


async def ready(page: Page, url: str, **window: Any) -> None:
    """Open the page, and let the model think as long as it likes: the questions here are too easy for AUTO."""
    await page.open(url, **window)
    await page.until("document.querySelector('#model').textContent !== 'Connecting'")
    await slide(page, 100)


async def slide(page: Page, place: int) -> str:
    """Move the budget's slider, as a hand does; return what stands beside it then."""
    await page.run(
        f"(field => {{ field.value = {place}; for (const kind of ['input', 'change'])"
        " field.dispatchEvent(new Event(kind, { bubbles: true })); })(document.querySelector('#budget'))"
    )
    return await page.text("#budget-tokens")


async def ask(page: Page, question: str) -> None:
    await page.write("#question", question)
    await page.click("#send")


async def last(page: Page, part: str) -> str:
    return str(await page.run(f"document.querySelector('#turns > li:last-child {part}').textContent"))


def idle() -> str:
    return "document.querySelector('#state').textContent === 'Ready'"


def thinks(characters: int = 1) -> str:
    return f"(document.querySelector('#turns > li:last-child .thought .text')?.textContent.length ?? 0) >= {characters}"


async def test_a_question_is_answered_with_thought_and_answer_apart(page: Page) -> None:
    await ask(page, "What is 48 + 27 + 36 + 15?")
    await page.until("document.querySelector('#ended').textContent === 'The model ended it'")
    await page.until(idle())
    assert await last(page, ".thought .text") == REPLIES[-1].thought
    assert await last(page, "> .text") == REPLIES[-1].answer
    assert await page.text("#thought-tokens") == f"{len(REPLIES[-1].thought)} tokens"
    assert await page.text("#announce") == REPLIES[-1].answer
    assert "tokens/s" in await page.text("#speed")
    assert await page.run("document.activeElement.id") == "question"
    await ask(page, "And again?")
    await page.until(idle())
    assert await page.run("document.querySelectorAll('#turns > li').length") == 4


async def test_a_thought_and_an_answer_grow_while_they_come(page: Page) -> None:
    await ask(page, "a slow one")
    await check_growth(page, ".thought .text")
    await ask(page, "a long answer")
    await check_growth(page, "> .text")


async def check_growth(page: Page, part: str) -> None:
    """The text grows while the call runs, which is stopped then."""
    before = ""
    for _ in range(4):
        longer = f"(document.querySelector('#turns > li:last-child {part}')?.textContent.length ?? 0) > {len(before)}"
        await page.until(longer)
        text = await last(page, part)
        assert LONG.startswith(text)
        assert text.startswith(before)
        assert not await page.run(f"document.querySelector('#stop').disabled || {idle()}")
        before = text
    assert len(before) < len(LONG)
    await page.click("#stop")
    await page.until(idle())


async def test_answer_now_and_stop_in_the_middle_of_a_thought(page: Page) -> None:
    await ask(page, "a slow one")
    await page.until(thinks(5))
    await page.click("#answer-now")
    await page.until(idle())
    assert await page.text("#ended") == "You asked for the answer"
    assert await last(page, "> .text") == "The sum is 126, as I have checked."
    assert len(await last(page, ".thought .text")) < len(LONG)
    await ask(page, "another slow one")
    await page.until(thinks(5))
    await page.click("#stop")
    await page.until(idle())
    assert await page.text("#ended") == "You stopped it"
    assert "You stopped it." in await last(page, ".how")
    assert (await page.text("#cost")).endswith(" USD")


async def test_the_slider_holds_and_is_moved_while_the_model_thinks(page: Page) -> None:
    assert await slide(page, 20) != await slide(page, 100)
    await ask(page, "a slow one")
    await page.until(thinks(3))
    shown = await slide(page, 60)
    tokens = int(shown.split()[0])
    await page.until(idle())
    assert await page.text("#budget-holds") == shown
    assert await page.text("#ended") == "The budget was spent"
    assert await page.text("#thought-tokens") == shown
    assert len(await last(page, ".thought .text")) == tokens


async def test_a_cut_network_is_survived(page: Page, network: Proxy) -> None:
    await ask(page, "a slow one")
    await page.until(thinks(10))
    network.refusing = True
    network.cut()
    await page.until("document.querySelector('#state').textContent.startsWith('The connection is lost')")
    before = len(await last(page, ".thought .text"))
    network.refusing = False
    await page.until(thinks(before + 10))
    await page.click("#answer-now")
    await page.until(idle())
    assert int(await page.text("#lost")) >= 1
    thought = await last(page, ".thought .text")
    assert LONG.startswith(thought)
    assert await last(page, "> .text") == "The sum is 126, as I have checked."
    # The browser itself tells of the requests that it could not make.
    page.messages[:] = [text for text in page.messages if "net::ERR_" not in text]


async def test_the_tool_runs_in_the_page(page: Page) -> None:
    await page.click("#calculator")
    await ask(page, "Please use the tool.")
    await page.until(idle())
    assert await page.run("document.querySelector('.tool').textContent.endsWith('= 225')")
    assert await last(page, "> .text") == "It is 225."


async def test_what_a_model_writes_is_text(page: Page) -> None:
    await ask(page, "evil")
    await page.until(idle())
    assert await last(page, "> .text") == EVIL
    assert await page.run("document.querySelectorAll('#turns img, #turns script, #turns a').length") == 0


async def test_a_picture_goes_with_the_next_question(page: Page) -> None:
    await choose_picture(page)
    await ask(page, "What is it?")
    await page.until(idle())
    assert await page.run("document.querySelectorAll('#turns img').length") == 1
    assert await page.run("document.querySelector('#problem').hidden")
    assert await last(page, "> .text")


async def choose_picture(page: Page) -> None:
    data = base64.b64encode(png(64, 64, "red")).decode()
    await page.run(
        f"""(() => {{
          const bytes = Uint8Array.from(atob("{data}"), (one) => one.charCodeAt(0));
          const files = new DataTransfer();
          files.items.add(new File([bytes], "red.png", {{ type: "image/png" }}));
          document.querySelector("#image").files = files.files;
          document.querySelector("#image").dispatchEvent(new Event("change"));
        }})()"""
    )
    await page.until("document.querySelector('#image-note').textContent.startsWith('red.png goes')")


async def test_an_error_is_told_and_the_page_goes_on(page: Page) -> None:
    await page.run("document.querySelector('#most').value = '999999'")
    await ask(page, "too much")
    await page.until("!document.querySelector('#problem').hidden")
    assert "999999" in await page.text("#problem")
    await page.run("document.querySelector('#most').value = ''")
    await ask(page, "What is 48 + 27 + 36 + 15?")
    await page.until("document.querySelector('#ended').textContent === 'The model ended it'")
    page.messages[:] = [text for text in page.messages if "status of 400" not in text]


async def test_the_keyboard_reaches_everything_and_is_never_trapped(page: Page) -> None:
    await page.run("document.body.focus()")
    seen = [await page.tab() for _ in range(60)]
    wanted = ["question", "send", "new", "effort", "budget", "calculator", "language", "copy", "code"]
    assert [name for name in wanted if name not in seen] == []
    assert {seen[0], "BODY"} & set(seen[1:])  # the focus comes round
    await page.run("document.querySelector('#question').focus()")
    await page.key("Enter", 13, text="\r")
    await page.until("document.querySelector('#ended').textContent === 'The model ended it'")


async def test_the_code_is_the_request_without_the_key(page: Page) -> None:
    await page.run(
        "(field => { field.value = 'a-secret-key'; field.dispatchEvent(new Event('change')); })"
        "(document.querySelector('#key'))"
    )
    for language in ("curl", "python", "go"):
        await page.run(
            f"(field => {{ field.value = '{language}'; field.dispatchEvent(new Event('input')); }})"
            "(document.querySelector('#language'))"
        )
        code = await page.text("#code")
        assert "/v1/chat/completions" in code or "base_url" in code
        assert "a-secret-key" not in code


async def test_the_second_view_says_what_it_cannot_show(page: Page) -> None:
    await page.click("#to-engine")
    await page.until("document.querySelector('#queue-note').textContent !== ''")
    assert not await page.run("document.querySelector('#engine').hidden")
    assert (await page.text("#experts-note")).startswith("Not shown: ")
    assert await page.run("document.querySelector('#to-engine').getAttribute('aria-current')") == "page"
    await page.click("#to-chat")
    await page.until("!document.querySelector('#chat').hidden")


class WithExperts(ScriptedEngine):
    """Counts tokens: layer 0 is even, and one expert of layer 3 gets all."""

    turns = 0

    async def expert_counts(self) -> ExpertCounts:
        self.turns += 1
        even, one = [8 * self.turns] * 8, [0] * 8
        one[5] = 64 * self.turns
        return ExpertCounts(2, 1, {0: array("q", even), 3: array("q", one)})


async def test_the_heat_map_shows_which_experts_are_hot(tmp_path: Path) -> None:
    async with (
        service(WithExperts(REPLIES)) as target,
        gateway_to(target) as address,
        browser(tmp_path / "profile") as page,
    ):
        await ready(page, f"{address}/")
        await page.click("#to-engine")
        await page.until("document.querySelector('#heat').getAttribute('aria-label').startsWith('Load of')")
        assert not await page.run("document.querySelector('#heat').hidden")
        assert await page.text("#experts-note") == ""
        said = await page.run("document.querySelector('#heat').getAttribute('aria-label')")
        assert "8 experts in 2 layers" in said
        assert "Layer 3 is the least even" in said
        assert await page.text("#load-state")
        size = await page.run("[document.querySelector('#heat').width, document.querySelector('#heat').height]")
        assert size == [8, 2]
        pixels = "[...document.querySelector('#heat').getContext('2d').getImageData(0, 0, 8, 2).data]"
        data = await page.run(pixels)
        brightness = [sum(data[at : at + 3]) for at in range(0, len(data), 4)]
        even, one = brightness[:8], brightness[8:]
        assert len(set(even)) == 1
        assert one[5] < even[0] < min(one[:5] + one[6:])  # the darker, the more tokens
        rows = await page.run("[...document.querySelectorAll('#layers tr')].map((row) => row.innerText)")
        assert [row.split()[0] for row in rows] == ["0", "3"]
        assert rows[1].split()[-1] == "5"
        before = await page.text("#load-state")
        await page.until(f"document.querySelector('#load-state').textContent !== {before!r}")  # it is live
        assert page.messages == []


WIDTHS = pytest.mark.parametrize("width", [1280, 768, 360])
SCHEMES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


async def check_with_axe(page: Page, state: str) -> None:
    """Nothing is wider than the window, and axe finds nothing in what is shown now."""
    assert await page.run("document.documentElement.scrollWidth <= innerWidth"), state
    if not await page.run("'axe' in globalThis"):
        # The page's own policy lets no other script in: axe comes by the debugger.
        await page.send("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = await page.run("axe.run().then((results) => results.violations)")
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == [], state


@WIDTHS
@SCHEMES
async def test_axe_finds_nothing_at_any_width(page: Page, url: str, width: int, dark: bool) -> None:
    await ready(page, url, width=width, dark=dark)
    await ask(page, "What is 48 + 27 + 36 + 15?")
    await page.until("document.querySelector('#ended').textContent === 'The model ended it'")
    await page.until(idle())
    for view in ("#chat", "#engine"):
        await page.run(f"location.hash = '{view}'")
        await page.until(f"!document.querySelector('{view}').hidden")
        await check_with_axe(page, view)


@WIDTHS
@SCHEMES
async def test_axe_finds_nothing_in_any_state(tmp_path: Path, width: int, dark: bool) -> None:
    async with (
        service(WithExperts(REPLIES)) as target,
        gateway_to(target) as address,
        browser(tmp_path / "profile") as page,
    ):
        await ready(page, f"{address}/", width=width, dark=dark)
        await page.run("document.querySelector('#chat details').open = true")
        await choose_picture(page)
        await check_with_axe(page, "a picture is chosen")
        await ask(page, "a slow one about a picture")
        await page.until(thinks(5))
        await page.until("!document.querySelector('#answer-now').disabled && !document.querySelector('#stop').disabled")
        await check_with_axe(page, "it thinks, and can be steered")
        assert await page.text("#state") != "Ready"
        await page.click("#answer-now")
        await page.until(idle())
        assert await page.run("document.querySelectorAll('#turns img').length") == 1
        await check_with_axe(page, "a picture is shown")
        await page.click("#new")
        await page.click("#calculator")
        await ask(page, "Please use the tool.")
        await page.until(idle())
        assert await page.run("document.querySelector('.tool').textContent.endsWith('= 225')")
        await check_with_axe(page, "a tool has run")
        await page.run("document.querySelector('#most').value = '999999'")
        await ask(page, "too much")
        await page.until("!document.querySelector('#problem').hidden")
        await check_with_axe(page, "an error is shown")
        await page.run("location.hash = '#engine'")
        await page.until("document.querySelector('#heat').getAttribute('aria-label').startsWith('Load of')")
        await page.until("document.querySelectorAll('#layers tr').length === 2")
        await check_with_axe(page, "the heat map is filled")
