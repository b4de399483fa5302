"""Format figures as text."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """Return a text such as `84 ms` or `1.25 s`; `lost` for None (infinite)."""
    if value is None:
        return "lost"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def usd(value: float | None) -> str:
    """Return a price with three significant figures: $0.0123, $2.40, $1,230."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"${value:,.0f}"
    if value >= 1:
        return f"${value:.2f}"
    if value and value < 1e-4:
        return f"${value:.1e}"
    text = f"{value:.3g}"
    return f"${value:.2f}" if len(text) < len("0.00") else f"${text}"


def share(value: float | None) -> str:
    """Return a share as a percentage; `-` for None."""
    return "-" if value is None else f"{value:.0%}"


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with `digits` decimals; `-` for None."""
    return "-" if value is None else f"{value:,.{digits}f}"
