"""Bodies of clients that are not installed here: LiteLLM 1.110 (recorded), Open WebUI 0.12 (from its source)."""

from __future__ import annotations

from typing import Any

from penstock.engine.scripted import Reply

from tests.gateway.conftest import Gateway, chunks_of

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "w", "parameters": {"type": "object"}}}]
ASKED = {"role": "user", "content": "weather in Oslo?"}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sun"}


async def test_litellm_sends_back_its_own_copy_of_the_thought(gateway: Gateway) -> None:
    answered: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
        "function_call": None,
        "reasoning_content": "I look.",
        "provider_specific_fields": {"reasoning": "I look."},
        "refusal": None,
    }
    http = await gateway(Reply("I look.", answer="Sunny."), Reply(answer="no thought came back"))
    body = {"model": "scripted", "messages": [ASKED, answered, RESULT], "tools": TOOLS, "tool_choice": "auto"}
    reply = await http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "Sunny."
    wrong = body | {"messages": [ASKED | {"provider_specific_fields": {}}]}
    assert (await http.post("/v1/chat/completions", json=wrong)).json()["error"]["code"] == "unknown_parameter"


async def test_open_webui_with_its_settings_and_custom_parameters(gateway: Gateway) -> None:
    answered = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    body = {
        "stream": True,
        "model": "scripted",
        "messages": [{"role": "system", "content": "s"}, ASKED, answered, RESULT, ASKED],
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 50,
        "reasoning_effort": "low",
        "thinking_mode": "thinking",
        "thinking_budget": 4,
    }
    chunks = await chunks_of(await gateway(Reply(thought="12345678", answer="Sunny.")), body)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "1234"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Sunny."
