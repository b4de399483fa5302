"""The command line without a service: help, configuration, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from penstock.cli import app
from penstock.cli.chat import Conversation
from penstock.cli.experts_map import _legend
from penstock.cli.options import Thinking
from penstock.cli.show import fitted, usd
from rich.console import Console
from typer.testing import CliRunner, Result


def run(*arguments: str, environ: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, arguments, env=environ)


def test_help_waits_for_nothing_heavy() -> None:
    code = (
        "import sys, penstock.cli; "
        "print([m for m in ('grpc', 'vllm', 'torch', 'pydantic', 'penstock.server.server') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "demo",
        "chat",
        "generate",
        "eval",
        "bench",
        "gpu-check",
        "pilot",
        "count",
        "plan",
        "model",
        "experts",
        "config",
        "version",
    ],
)
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert command in result.stdout


def test_config_show_says_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[server]\nlisten = "127.0.0.1:7"\n')
    arguments = ["config", "show", "--config", str(file), "--set", "limits.max_messages=3"]
    environ = {"PENSTOCK_ENGINE_DEVICE": "cpu"}
    shown = json.loads(run(*arguments, "--json", environ=environ).stdout)
    assert shown["config"]["server"]["listen"] == "127.0.0.1:7"
    assert shown["origins"]["server.listen"] == f"file {file}"
    assert shown["origins"]["limits.max_messages"] == "flag --set limits.max_messages"
    assert shown["origins"]["engine.device"] == "environment PENSTOCK_ENGINE_DEVICE"
    assert tomllib.loads(run(*arguments, "--toml", environ=environ).stdout)["limits"]["max_messages"] == 3
    table = run(*arguments, environ=environ).stdout
    assert "engine.device" in table
    assert "environment" in table


def test_wrong_configuration_is_exit_code_2_in_words(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("[serve]\n")
    for arguments in (["config", "check", str(file)], ["serve", "--check-config", "--config", str(file)]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "line 1: serve: no such section; did you mean server?" in result.stderr
        assert "Traceback" not in result.output
    assert json.loads(run("config", "check", str(file), "--json").stdout)["ok"] is False


def test_serve_checks_its_configuration() -> None:
    assert run("serve", "--check-config", "--listen", "0.0.0.0:0", "--insecure", "--device", "cpu").exit_code == 0
    result = run("serve", "--check-config", "--device", "tpu", "--set", "engine.mtp=of")
    assert result.exit_code == 2
    assert "flag --device: engine.device: must be 'auto', 'cpu' or 'gpu', not 'tpu'" in result.stderr
    assert "did you mean off?" in result.stderr
    assert run("serve", "--set", "nonsense").exit_code == 2


def test_wrong_usage_is_exit_code_2() -> None:
    for arguments in (["generate"], ["generate", "hi", "--budget", "x"], ["generate", "hi", "--budget", "9999999999"]):
        assert run(*arguments).exit_code == 2
    result = CliRunner().invoke(app, ["generate", "-"], input=b"\xff")
    assert result.exit_code == 2
    assert "UTF-8" in result.stderr


def test_nobody_there_is_told_with_what_to_do() -> None:
    result = run("model", "--target", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr == "penstock: nothing listens at 127.0.0.1:1: start a service with `penstock serve`\n"


def test_an_api_key_does_not_leave_in_the_clear() -> None:
    result = run("model", "--target", "models.example:443", environ={"PENSTOCK_API_KEY": "k"})
    assert result.exit_code == 2


def test_version() -> None:
    assert set(json.loads(run("version", "--json").stdout)) >= {"penstock", "penstock-client", "grpcio", "python"}
    assert run("version").stdout.startswith("penstock ")
    assert run("--version").stdout == run("version").stdout


@pytest.mark.parametrize(
    ("ticks", "text"), [("0.0000231", "$0.0000231"), ("0", "$0"), ("1E-10", "$0.0000000001"), ("20.00", "$20")]
)
def test_money_is_shown_exactly(ticks: str, text: str) -> None:
    assert usd(Decimal(ticks)) == text


def test_chat_commands() -> None:
    talk = Conversation(None, None, 5, True, turns=[("user", "x")])
    assert talk.command("/fast") == "thinking: fast"
    assert talk.budget is None
    assert talk.command("/budget 7") == "budget: 7 tokens"
    assert talk.thinking is None
    assert talk.command("/thinking") == "thinking: thinking"
    assert (talk.thinking, talk.budget) == (Thinking.thinking, 7)
    assert talk.command("/budget") == "budget: the server decides"
    assert talk.command("/reset") == "a new conversation"
    assert talk.turns == []
    assert talk.command("/quit") is None
    with pytest.raises(ValueError, match="the budget must be a whole number of tokens"):
        talk.command("/budget many")


def test_the_status_line_breaks_between_its_items() -> None:
    line = "thought 12/16 tokens (budget reached) · answer 5 · prompt 31 (16 cached) · first token 0.21 s · 80 tok/s"
    for width in (20, 40, 60, 200):
        lines = fitted(line, Console(width=width, force_terminal=True)).splitlines()
        assert " · ".join(lines) == line
        assert all(len(one) <= width or " · " not in one for one in lines)
    assert fitted(line, Console(width=20, force_terminal=False)) == line, "a log's line is one line"


@pytest.mark.parametrize(("colour", "cells"), [(None, 5), ("truecolor", 6)])
def test_the_legend_of_experts_has_each_glyph_once(colour: Any, cells: int) -> None:
    legend = _legend(colour is not None).plain
    glyphs = re.findall(r"\[(.)\]|██", legend)
    assert len(glyphs) == cells
    if colour is None:
        assert glyphs == list(dict.fromkeys(glyphs)) == [" ", "░", "▒", "▓", "█"]
        assert "[▒] to 1.6x" in legend
