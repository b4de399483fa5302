"""OpenAI's HTTP API in front of a Penstock service. `app.create_app` makes the ASGI application."""

from importlib import metadata as _metadata

try:
    __version__ = _metadata.version("penstock-gateway")
except _metadata.PackageNotFoundError:  # not installed, only on the path
    __version__ = "0+unknown"

__all__ = ["__version__"]
