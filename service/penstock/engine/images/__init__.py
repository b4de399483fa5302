"""Decode images of callers in a process of its own, within limits of memory and time."""

from penstock.engine.images.decoder import ImageDecoder
from penstock.engine.images.decoding import ImageLimits

__all__ = ["ImageDecoder", "ImageLimits"]
