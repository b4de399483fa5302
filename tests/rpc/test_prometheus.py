"""A real Prometheus scrapes the service, loads every alert rule, and evaluates every query of the dashboard."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.machine import free_port
from tests.rpc.test_telemetry_metrics import DASHBOARD, LONG, RULES, serving, some_of_everything, telling
from tests.tooling import program

pytestmark = [pytest.mark.full, pytest.mark.needs("prometheus")]


def ask(port: int, path: str, **query: str) -> Any:
    address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(address, timeout=10) as reply:
        said = json.loads(reply.read())
    assert said["status"] == "success", said
    return said["data"]


async def until_scraped(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                found = await asyncio.to_thread(ask, port, "query", query="count(penstock_engine_up) and sum(up) == 1")
            except OSError:
                found = {"result": []}
            if found["result"]:
                return
            await asyncio.sleep(0.2)


async def test_prometheus_should_take_every_rule_and_query(tmp_path: Path) -> None:
    async with telling(prometheus_listen=":0") as telemetry, serving(telemetry.hooks, LONG) as channel:
        assert telemetry.endpoint is not None
        await some_of_everything(channel)
        port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "penstock", "static_configs": [{"targets": [telemetry.endpoint.address]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        running = await asyncio.create_subprocess_exec(
            program("prometheus"),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await until_scraped(port)
            await asyncio.to_thread(every_rule_and_query, port)
        finally:
            running.terminate()
            await running.wait()


def every_rule_and_query(port: int) -> None:
    wanted = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    # Each is evaluated once more here: the server's own first evaluation may be yet to come.
    rules = [rule for group in ask(port, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == wanted
    for rule in rules:
        ask(port, "query", query=rule["query"])
        assert rule["health"] in ("ok", "unknown"), rule
    asked = 0
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m")
            for name in ("namespace", "pod", "instance"):
                query = query.replace(f"${name}", ".*")
            ask(port, "query", query=query)
            asked += 1
    assert asked > 40
    assert ask(port, "query", query='sum(penstock_refusals_total{reason="POISONOUS_REQUEST"})')["result"]
