"""Proxies in front of a service, as their manuals advise for gRPC: HTTP/2 on both sides, plaintext or TLS on both."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.machine import free_port
from tests import tooling

_START_SECONDS = 60


@dataclass(frozen=True)
class Tls:
    """Files in PEM: the proxy's and the service's own certificate with its key, and their authority."""

    certificate: str
    key: str
    authority: str


@dataclass(frozen=True)
class Route:
    """From a port of this machine to the service's. Without `tls` both sides speak plaintext."""

    port: int
    service_port: int
    tls: Tls | None
    place: Path


@contextmanager
def proxy(name: str, service: str, tls: Tls | None, place: Path) -> Iterator[str]:
    """Run the proxy in front of the service at that address; yield its own."""
    route = Route(free_port(), int(service.rpartition(":")[2]), tls, place)
    with running(_PROXIES[name](route), route.port, place / f"{name}.log"):
        yield f"127.0.0.1:{route.port}"


@contextmanager
def running(command: list[str], port: int, log_file: Path) -> Iterator[None]:
    """Run a proxy's program, once it listens on the port, until the block ends."""
    with log_file.open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=log_file.parent)
        try:
            _await(port, process, log_file)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.05)
        else:
            return


def _nginx(route: Route) -> list[str]:
    """nginx opens a connection to the service for each call, and closes it after."""
    tls, scheme = route.tls, "grpcs" if route.tls else "grpc"
    pair = f"ssl_certificate {tls.certificate}; ssl_certificate_key {tls.key};" if tls else ""
    trust = f"grpc_ssl_trusted_certificate {tls.authority}; grpc_ssl_verify on; grpc_ssl_name localhost;" if tls else ""
    folders = " ".join(
        f"{name}_temp_path {route.place};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = f"""
daemon off; master_process off; pid {route.place}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; {folders}
  server {{
    listen 127.0.0.1:{route.port} {"ssl " if tls else ""}http2; {pair}
    http2_max_concurrent_streams 1024; client_max_body_size 0; keepalive_requests 100000;
    location / {{
      grpc_pass {scheme}://127.0.0.1:{route.service_port}; {trust}
      grpc_read_timeout 1h; grpc_send_timeout 1h; client_body_timeout 1h;
    }}
  }}
}}
"""
    config = _write(route, "nginx.conf", text)
    return [tooling.program("nginx"), "-p", str(route.place), "-e", "stderr", "-c", config]


def _haproxy(route: Route) -> list[str]:
    tls = route.tls
    if tls:
        both = Path(tls.certificate).read_text() + Path(tls.key).read_text()
        front = f"ssl crt {_write(route, 'both.pem', both)} alpn h2"
        back = f"ssl verify required verifyhost localhost ca-file {tls.authority} alpn h2"
    else:
        front = back = "proto h2"
    text = f"""
global
  tune.h2.max-concurrent-streams 1024
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend front
  bind 127.0.0.1:{route.port} {front}
  default_backend back
backend back
  server penstock 127.0.0.1:{route.service_port} {back}
"""
    return [tooling.program("haproxy"), "-db", "-f", _write(route, "haproxy.cfg", text)]


def _nghttpx(route: Route) -> list[str]:
    tls = route.tls
    command = [
        tooling.program("nghttpx"),
        "--conf=/dev/null",
        "--errorlog-file=/dev/stderr",
        "--accesslog-file=/dev/null",
    ]
    command += ["--frontend-http2-max-concurrent-streams=1024", "--no-ocsp", "--workers=1"]
    command += [f"--{side}-timeout=1h" for side in ("backend-read", "backend-write", "stream-read", "stream-write")]
    # It compares a certificate with names alone, never with an address.
    backend = ";proto=h2;tls;sni=localhost" if tls else ";proto=h2"
    command += [f"-b127.0.0.1,{route.service_port};{backend}"]
    if tls:
        command += [f"-f127.0.0.1,{route.port}", f"--cacert={tls.authority}", tls.key, tls.certificate]
    else:
        command += [f"-f127.0.0.1,{route.port};no-tls"]
    return command


def _envoy(route: Route) -> list[str]:
    """Repeats what the service has refused before it looked at it, as gRPC's own clients do."""
    tls = route.tls
    http2 = {"max_concurrent_streams": 1024}
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    retries = {"retry_on": "refused-stream", "num_retries": 3}
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "penstock", "timeout": "0s", "retry_policy": retries}}]
    filters = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "3600s",
        "http2_protocol_options": http2,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    chain: dict[str, object] = {"filters": [{"name": "http", "typed_config": manager}]}
    options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    many = {"max_requests": 4096, "max_pending_requests": 4096, "max_connections": 64, "max_retries": 4096}
    cluster: dict[str, object] = {
        "name": "penstock",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {
            "cluster_name": "penstock",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(route.service_port)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 1024}},
            }
        },
    }
    if tls:
        sockets = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
        pair = {"certificate_chain": {"filename": tls.certificate}, "private_key": {"filename": tls.key}}
        down = {"alpn_protocols": ["h2"], "tls_certificates": [pair]}
        up = {"alpn_protocols": ["h2"], "validation_context": {"trusted_ca": {"filename": tls.authority}}}
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {"@type": f"{sockets}.DownstreamTlsContext", "common_tls_context": down},
        }
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {"@type": f"{sockets}.UpstreamTlsContext", "common_tls_context": up},
        }
    listener = {"name": "front", "address": _socket(route.port), "filter_chains": [chain]}
    config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    path = _write(route, "envoy.json", json.dumps(config))
    return [
        tooling.program("envoy"),
        "-c",
        path,
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "--log-level",
        "warning",
    ]


def _socket(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _write(route: Route, name: str, text: str) -> str:
    path = route.place / name
    path.write_text(text)
    return str(path)


_PROXIES: dict[str, Callable[[Route], list[str]]] = {
    "envoy": _envoy,
    "nginx": _nginx,
    "haproxy": _haproxy,
    "nghttpx": _nghttpx,
}
NAMES = tuple(_PROXIES)
