"""Test what a type checker must refuse of the Python client: each marked line, with that code, and no other line."""

from __future__ import annotations

import penstock_client as pc

client = pc.Client()
aclient = pc.AsyncClient()

client.generate("hi", thinkin="fast")  # E: call-arg
client.generate("hi", thinking="deep")  # E: arg-type
client.generate("hi", budget="64")  # E: arg-type
client.generate("hi", max_tokens=5)  # E: call-arg
client.generate("hi", stop=7)  # E: arg-type
client.generate("hi", temperature="hot")  # E: arg-type
client.generate(7)  # E: arg-type
client.generate({"text": "hi"})  # E: arg-type
client.generate([{"role": "user", "content": "hi"}], overflow="drop")  # E: arg-type
client.generate("hi", top_k=0.5)  # E: arg-type
client.generate("hi", seed="1")  # E: arg-type
client.generate("hi", max_output_tokens=1.5)  # E: arg-type
client.generate("hi", stop_token_ids=["a"])  # E: list-item
client.generate("hi", logit_bias={"a": 1})  # E: dict-item
client.generate("hi", json_schema=7)  # E: arg-type
client.generate("hi", priority="urgent")  # E: arg-type
client.generate("hi", include_thoughts="yes")  # E: arg-type
client.generate(b"hi")  # E: arg-type
client.generate(pc.Message("user", "hi"))  # E: arg-type
client.stream("hi", resumeable=True)  # E: call-arg
client.stream("hi", timeout="10")  # E: arg-type
client.interact("hi", resumable=True)  # E: call-arg
client.count("hi", topp=0.5)  # E: call-arg
client.model(timeOut=1)  # E: call-arg
client.expert_load(window="1")  # E: call-arg
client.resume("id")  # E: call-arg
client.steer("id", "token", finish=True)  # E: call-arg
client.steer("id", "token", budget="5")  # E: arg-type
client.stream("hi").change_budget("5")  # E: arg-type
client.with_options(retries="2")  # E: arg-type
pc.Client(apikey="k")  # E: call-arg
pc.Client(timeout="1")  # E: arg-type
pc.Client(reconnect=3)  # E: arg-type
pc.Message("asistant", "x")  # E: arg-type
pc.Conversation().add(7)  # E: arg-type
pc.Conversation().ask(["a"])  # E: arg-type
pc.build_spec("hi", thinkin="fast")  # E: call-arg
pc.Reconnect(most_attempts=3)  # E: call-arg
pc.Message(role="function", content="x")  # E: arg-type
pc.Message("user", ["x"])  # E: arg-type
pc.Message.user(7)  # E: arg-type
pc.Message.user(pc.ThoughtPart("x"))  # E: arg-type
pc.Message.tool("x")  # E: arg-type
pc.Message.assistant("x", tool_calls=["x"])  # E: list-item
pc.ToolResult("id", 7)  # E: arg-type
pc.Tool("x", parameters=7)  # E: arg-type
pc.Conversation().add_results("x")  # E: arg-type
client.generate("hi", tools=[7])  # E: list-item
client.generate("hi", tool_mode="any")  # E: arg-type
client.generate("hi", tool_choice="auto")  # E: call-arg
client.generate("hi", effort="max")  # E: arg-type
client.generate("hi", history="all")  # E: arg-type
client.generate("hi", parallel="no")  # E: arg-type
client.generate("hi", response_format={"type": "json_object"})  # E: arg-type
client.run("hi", max_turns="8")  # E: arg-type
client.run("hi", spec=None)  # E: call-arg
client.run("hi", on_tool_error="x")  # E: arg-type
client.run("hi").reply.tool_calls[0].args  # E: attr-defined
pc.ThinkingMode.DEEP  # E: attr-defined
pc.NoSuchError  # E: attr-defined
client.generate("hi").answer = "x"  # E: misc
client.generate("hi").anwser  # E: attr-defined
client.generate("hi").finish_reason == 3  # E: comparison-overlap
client.generate("hi").usage.prompt_tokens  # E: union-attr
for _ in client.generate("hi"):  # E: attr-defined
    pass
for event in client.stream("hi"):
    event.text  # E: union-attr


def cost_is_no_number(reply: pc.Response) -> float:
    return reply.cost  # E: return-value


async def misused() -> None:
    await aclient.generate("hi", thinkin="fast")  # E: call-arg
    aclient.generate("hi").answer  # E: attr-defined
    for _ in aclient.stream("hi"):  # E: attr-defined
        pass
    await aclient.stream("hi")  # E: misc
    await client.generate("hi")  # E: misc
    aclient.generate("hi")  # E: unused-coroutine
    aclient.run("hi")  # E: unused-coroutine
    aclient.run("hi").answer  # E: attr-defined
    aclient.count("hi").prompt_tokens  # E: attr-defined
    aclient.model().name  # E: attr-defined
    aclient.stream("hi").text() + "x"  # E: operator
    aclient.stream("hi").finish_thinking()  # E: unused-coroutine
    aclient.steer("id", "token", cancel=True).applied  # E: attr-defined
    aclient.interact("hi").change_budget("3")  # E: arg-type
    async for _ in aclient.generate("hi"):  # E: attr-defined
        pass
    async for _ in client.stream("hi"):  # E: attr-defined
        pass
    async with client:  # E: attr-defined
        pass
    with aclient:  # E: attr-defined
        pass


@pc.tool
def add(a: int, b: int = 2) -> int:
    """Return the sum."""
    return a + b


@pc.tool(name="minus", strict=True)
async def subtract(a: int, b: int) -> int:
    """Return the difference."""
    return a - b


add("1")  # E: arg-type
add(1).upper()  # E: attr-defined
pc.tool(nmae="x")  # E: call-overload
pc.tool(7)  # E: call-overload


def used(reply: pc.Response) -> int:
    """Return what is right is not refused."""
    talk = pc.Conversation("be short")
    talk.add(client.generate(talk.ask("hi"), thinking="thinking", budget=-1, stop=["a"], timeout=1))
    client.generate([pc.Message("user", "hi"), {"role": "assistant", "content": "x"}, ("user", "more")])
    for event in client.stream("hi", json_schema={"type": "object"}, resumable=False):
        if isinstance(event, pc.AnswerDelta):
            event.text.upper()
    run = client.run([pc.Message.user("hi")], tools=[add, {"name": "x"}], tool_mode="validated", effort="low")
    client.run("hi", tools=[lambda: 1], on_tool_error=lambda call, error: call.name, response_format=pc.Usage)
    talk.add(run.reply).add_results(*run.turns[0].results)
    sum((add(1), reply.parse(int), len(reply.tool_calls[0].arguments)))
    with client.with_options(timeout=3, metadata={"x-team": "a"}) as other:
        other.stream("hi").text()
    return reply.usage.prompt_tokens if reply.usage else 0
