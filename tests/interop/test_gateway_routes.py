"""The gateway behind nginx and Envoy, configured from the Ingress and the HTTPRoute that the chart renders.

An ingress controller or a Gateway translates these objects; here a few lines do it, for the fields that the chart sets.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from penstock.engine.scripted import Reply
from penstock_gateway.settings import Settings

from bench.machine import free_port
from tests import tooling
from tests.chart.chart import Object, of_kind, render
from tests.gateway.conftest import Gateway, gateway, until
from tests.interop.proxies import running

__all__ = ["gateway"]  # a fixture

HOST = "llm.example"
VALUES: Object = {
    "gateway": {
        "enabled": True,
        "exposePlayground": True,
        "ingress": {"enabled": True, "hosts": [HOST]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": [HOST]},
    }
}
# The stream begins, and its first token comes later than the test ends.
STALLS = Reply(answer="yes and no", step_seconds=3600)
ASKED = {"model": "", "messages": [{"role": "user", "content": "hello"}], "thinking_mode": "fast", "stream": True}


def nginx(objects: list[Object], upstream: int, port: int, place: Path) -> list[str]:
    """The directives that ingress-nginx makes of the annotations and paths of an Ingress."""
    (ingress,) = of_kind(objects, "Ingress")
    names = {"proxy-body-size": "client_max_body_size"}
    directives = ""
    for annotation, value in ingress["metadata"]["annotations"].items():
        name = annotation.removeprefix("nginx.ingress.kubernetes.io/")
        directives += f"{names.get(name, name.replace('-', '_'))} {value}; "
    locations = ""
    for path in ingress["spec"]["rules"][0]["http"]["paths"]:
        kinds = [f"= {path['path']}"] + [f"{path['path']}/"] * (path["pathType"] == "Prefix")
        for kind in kinds:
            locations += f"location {kind} {{ {directives} proxy_pass http://127.0.0.1:{upstream}; }}\n"
    folders = " ".join(f"{name}_temp_path {place};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = f"""
daemon off; master_process off; pid {place}/nginx.pid; error_log stderr warn;
events {{ worker_connections 64; }}
http {{
  access_log off; {folders} proxy_http_version 1.1; proxy_set_header Connection "";
  server {{ listen 127.0.0.1:{port}; server_name {HOST}; {locations} location / {{ return 404; }} }}
}}
"""
    (place / "nginx.conf").write_text(text)
    return [tooling.program("nginx"), "-p", str(place), "-e", "stderr", "-c", str(place / "nginx.conf")]


def envoy(objects: list[Object], upstream: int, port: int, place: Path) -> list[str]:
    """The route that an Envoy-based Gateway makes of an HTTPRoute."""
    (rule,) = of_kind(objects, "HTTPRoute")[0]["spec"]["rules"]
    ways = {"Exact": "path", "PathPrefix": "path_separated_prefix"}
    action = {"cluster": "gateway", "timeout": rule["timeouts"]["request"]}
    routes = [{"match": {ways[m["path"]["type"]]: m["path"]["value"]}, "route": action} for m in rule["matches"]]
    filters = "type.googleapis.com/envoy.extensions.filters"
    router = {"@type": f"{filters}.http.router.v3.Router"}
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "normalize_path": True,
        "merge_slashes": True,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": [HOST], "routes": routes}]},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    behind = {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}
    chains = [{"filters": [{"name": "http", "typed_config": manager}]}]
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": behind}}]}]
    cluster = {
        "name": "gateway",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "gateway", "endpoints": endpoints},
    }
    listeners = [{"name": "front", "address": address, "filter_chains": chains}]
    config = {"static_resources": {"listeners": listeners, "clusters": [cluster]}}
    (place / "envoy.json").write_text(json.dumps(config))
    one = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warn"]
    return [tooling.program("envoy"), "-c", str(place / "envoy.json"), *one]


@pytest.fixture(
    params=[
        pytest.param(nginx, marks=pytest.mark.needs("helm", "nginx")),
        pytest.param(envoy, marks=pytest.mark.needs("helm", "envoy")),
    ]
)
async def behind(request: pytest.FixtureRequest, gateway: Gateway, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the proxy in front of a gateway."""
    http = await gateway(STALLS, settings=Settings(keep_alive_seconds=0.2))
    port = free_port()
    upstream = http.base_url.port
    assert upstream is not None
    with running(request.param(render(VALUES), upstream, port, tmp_path), port, tmp_path / "log"):
        options: dict[str, Any] = {"timeout": 60, "trust_env": False, "headers": {"host": HOST}}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", **options) as client:
            yield client


async def test_text_comes_at_once_silence_is_kept_and_leaving_ends_the_generation(
    behind: httpx.AsyncClient, gateway: Gateway
) -> None:
    (engine,) = gateway.engines
    async with asyncio.timeout(60), behind.stream("POST", "/v1/chat/completions", json=ASKED) as reply:
        assert reply.status_code == 200, await reply.aread()
        wanted = ['"role":"assistant"', ":"]  # the first chunk, and in the silence after it a comment
        async for line in reply.aiter_lines():
            if wanted[0] in line if wanted[0] != ":" else line.startswith(":"):
                wanted.pop(0)
            if not wanted:
                break
        assert wanted == []
        assert engine.running == 1
    await until(lambda: engine.running == 0)


async def test_a_large_image_reaches_the_gateway(behind: httpx.AsyncClient) -> None:
    image = base64.b64encode(bytes(9 * 2**20)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    body = {"model": "", "messages": [{"role": "user", "content": [part]}]}
    reply = await behind.post("/v1/chat/completions", json=body)
    # An answer of the service, not of the proxy: its model takes smaller images.
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "limit_exceeded"), error
    assert "image" in error["message"], error


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/healthz",
        "/readyz",
        "//metrics",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/v1metrics",
        "/playgroundx",
    ],
)
async def test_what_is_not_the_api_is_not_there(behind: httpx.AsyncClient, path: str) -> None:
    """As the bytes say it: httpx would tidy the path up."""
    reader, writer = await asyncio.open_connection(behind.base_url.host, behind.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 60)).decode()
    writer.close()
    await writer.wait_closed()
    assert answer.split(" ")[1] in ("400", "404")
    assert "penstock_gateway" not in answer
    assert '"status":"ok"' not in answer


async def test_the_api_and_the_playground_are_there(behind: httpx.AsyncClient) -> None:
    for path in ("/v1/models", "/", "/playground/app.js", "/playground/api/model"):
        reply = await behind.get(path)
        assert reply.status_code == 200, path
