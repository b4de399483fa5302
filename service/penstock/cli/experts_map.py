"""Draw the heat map of `penstock experts`: a row per layer, a cell per expert, or per several in a narrow terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

if TYPE_CHECKING:
    from penstock_client import ExpertLoad
    from penstock_client.experts import LayerLoad

# Upper bound of the load divided by the layer's mean, with its colour (distinct for colour-blind readers) and its shade
# for output without colour.
_LEVELS = (
    (0.5, "#440154", " "),
    (0.8, "#31688e", "░"),
    (1.25, "#1f9e89", "▒"),
    (1.6, "#6ece58", "▒"),
    (2.0, "#fde725", "▓"),
    (float("inf"), "#ff4f00", "█"),
)
_MAX_HOT = 4
_SIDE = 46  # Columns of the numbers beside the map.


def heat_map(load: ExpertLoad, console: Console) -> Group:
    """Return the map at the console's width; without colour its cells are shades."""
    experts = max((len(layer.expert_token_counts) for layer in load.layers), default=0)
    room = max(8, console.width - _SIDE)
    merged = -(-experts // room) if experts else 1
    wide = max(1, min(4, room // max(1, -(-experts // merged))))
    lines = [_title(load, experts, merged), Text(_head(load, -(-experts // merged) * wide), style="dim")]
    lines += [_row(layer, load.rank_count, merged, wide, console.color_system is not None) for layer in load.layers]
    return Group(*lines, _legend(console.color_system is not None))


def _title(load: ExpertLoad, experts: int, merged: int) -> Text:
    said = f"{load.token_count:,} tokens in {load.window_seconds:.0f} s, {len(load.layers)} layers of {experts} experts"
    ranks = f", {load.rank_count} ranks" if load.rank_count > 1 else ""
    return Text(said + ranks + (f"; a cell is the busiest of {merged}" if merged > 1 else ""), style="bold")


def _head(load: ExpertLoad, width: int) -> str:
    rank = "  busiest rank" if load.rank_count > 1 else ""
    return f"{'layer':>5} {'':{width}} max/mean  entropy{rank}  hot"


def _row(layer: LayerLoad, ranks: int, merged: int, wide: int, colour: bool) -> Text:
    counts = layer.expert_token_counts
    mean = sum(counts) / len(counts) if counts else 0.0
    row = Text(f"{layer.layer_index:>5} ")
    for start in range(0, len(counts), merged):
        # The busiest of the experts that share a cell, so that a hot expert stays visible.
        over = max(counts[start : start + merged]) / mean if mean else 1.0
        style, shade = next((style, shade) for most, style, shade in _LEVELS if over <= most)
        row.append(("█" if colour else shade) * wide, style if colour else "")
    rank = f"{layer.busiest_rank_share * ranks:13.2f}x" if ranks > 1 else ""
    hot = ", ".join(map(str, layer.hot_experts[:_MAX_HOT])) + ("..." if len(layer.hot_experts) > _MAX_HOT else "")
    row.append(f" {layer.imbalance:7.2f}x {layer.normalized_entropy:8.3f}{rank}  {hot}")
    return row


def _legend(colour: bool) -> Text:
    legend = Text("      ", style="dim")
    levels = _LEVELS if colour else tuple({shade: (most, style, shade) for most, style, shade in _LEVELS}.values())
    for most, style, shade in levels:
        legend.append("██" if colour else f"[{shade}]", style if colour else "")
        legend.append(f" to {most:g}x  " if most != float("inf") else " more")
    return legend
