"""Lets the model call a function, and prints each call, the answer, and what all turns used."""

from penstock_client import Client, tool


@tool
def temperature(city: str) -> str:
    """Return the temperature in a city.

    Args:
        city: Name of the city.
    """
    return f"It is 21 degrees in {city}."


with Client() as client:
    run = client.run("How warm is it in Oslo?", tools=[temperature], max_turns=4, timeout=60)
    for turn in run.turns:
        for call, result in zip(turn.reply.tool_calls, turn.results, strict=False):
            print(call.name, call.arguments, "->", result.content)
    print(run.answer)
    print(run.usage.tool_tokens, "tokens of tool calls")
