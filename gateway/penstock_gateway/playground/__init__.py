"""Serve the playground: a page for the browser, and what it asks beside OpenAI's API.

The page is static: no build step, no framework, and nothing from another site. All of it is served with a strict
Content-Security-Policy, so that no text of a model can run as a script.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from penstock_client import FeatureOff, ModelCard
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from penstock_gateway.callers import client_of
from penstock_gateway.json_response import JsonResponse
from penstock_gateway.playground.queue import QueueReader

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every response of the playground."""
_UNCACHED = {**HEADERS, "Cache-Control": "no-store"}
_SLIDER_TOKENS = 4096
"""Largest budget of the slider where the model's window allows more."""


@dataclass(frozen=True, slots=True)
class _File:
    """One file of the page, with what is sent beside it."""

    content: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, name: str, content: bytes) -> _File:
        kind = _TYPES[name.rpartition(".")[2]]
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, {**HEADERS, "Content-Type": kind, "ETag": etag, "Cache-Control": "no-cache"})


def routes() -> list[BaseRoute]:
    """Return the routes of the page and of its own API."""
    files = _files()
    made: list[BaseRoute] = [Route("/", _serving(files["index.html"]))]
    made += [Route(f"/playground/{name}", _serving(file)) for name, file in files.items() if name != "index.html"]
    return [
        *made,
        Route("/playground/api/model", _model, methods=["GET"]),
        Route("/playground/api/load", _loading(QueueReader()), methods=["GET"]),
    ]


def _files() -> dict[str, _File]:
    """Return the files of the page by name: a request can name no other file."""
    found = resources.files(__package__) / "static"
    return {entry.name: _File.of(entry.name, entry.read_bytes()) for entry in found.iterdir() if entry.is_file()}


def _serving(file: _File) -> Any:
    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == file.headers["ETag"]:
            return Response(status_code=304, headers=file.headers)
        return Response(file.content, headers=file.headers)

    return serve


async def _model(request: Request) -> Response:
    """Answer what the page needs to know of the served model."""
    return JsonResponse(_shown(await client_of(request).model()), headers=_UNCACHED)


def _shown(card: ModelCard) -> dict[str, Any]:
    most = max(1, card.context_window_tokens - max(1, card.answer_reserve))
    return {
        "model": card.model,
        "context_window_tokens": card.context_window_tokens,
        "max_thinking_budget": min(_SLIDER_TOKENS, most),
        "efforts": {name.value: asdict(effort) for name, effort in card.efforts.items()},
        "price_tiers": [
            {
                "up_to_prompt_tokens": tier.up_to_prompt_tokens,
                "input_usd_per_million": float(tier.input_usd_per_million),
                "cached_usd_per_million": float(tier.cached_usd_per_million),
                "output_usd_per_million": float(tier.output_usd_per_million),
            }
            for tier in card.price_tiers
        ],
        "images": _images(card),
    }


def _images(card: ModelCard) -> dict[str, Any]:
    """Return whether the service takes images, and why not."""
    for feature in card.profile:
        if feature.name == "images":
            return {"enabled": feature.enabled, "reason": feature.reason}
    return {"enabled": False, "reason": "this version of the service reads text only"}


def _loading(reader: QueueReader) -> Any:
    async def load(request: Request) -> Response:
        """Answer the load of the experts and of the queue, to a caller that may see it."""
        shown: dict[str, Any] = {"experts": None, "experts_reason": None}
        try:
            found = await client_of(request).expert_load()
            shown["experts"] = {
                "window_seconds": found.window_seconds,
                "token_count": found.token_count,
                "layers": found.layers,
            }
        except FeatureOff as error:  # The caller may see it: permissions are checked before features.
            shown["experts_reason"] = error.message
        queue = await reader.read()
        return JsonResponse({**shown, "queue": queue.numbers, "queue_reason": queue.reason}, headers=_UNCACHED)

    return load
