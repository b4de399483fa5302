"""Describe the machine and the service of a measurement."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from penstock_client import ModelCard


def client_machine() -> dict[str, Any]:
    """Return the facts about this machine, which is also the service's if the target is loopback."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def model_facts(card: ModelCard) -> dict[str, Any]:
    """Return the facts about the served model as plain values."""
    return {
        "name": card.model,
        "architecture": card.architecture,
        "service_version": card.service_version,
        "engine_version": card.engine_version,
        "vocab_size": card.vocab_size,
        "context_window_tokens": card.context_window_tokens,
        "profile": [asdict(feature) for feature in card.profile],
        "prices_usd_per_million": [
            {name: None if value is None else str(value) for name, value in asdict(tier).items()}
            for tier in card.price_tiers
        ],
    }


def cpu_name() -> str:
    """Return the CPU's name, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
