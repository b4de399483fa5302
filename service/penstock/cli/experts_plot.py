"""Draw the picture of `penstock experts --png`. Imports matplotlib when it draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock_client import ExpertLoad

_DPI = 200
_NUMBERED = 16  # Number of experts up to which cells are wide enough for a number.
_BRIGHTEST = 2.0  # Load divided by the mean above which cells look the same.


def draw(load: ExpertLoad, file: Path) -> None:
    """Write the picture; the suffix of `file` determines the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [_over_mean(layer.expert_token_counts) for layer in load.layers]
    layers, experts = len(shares), max(map(len, shares), default=0)
    figure = Figure(figsize=(9.0, min(12.0, 1.6 + 0.25 * max(6, layers))), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=_BRIGHTEST, aspect="auto", interpolation="nearest")
    if experts <= _NUMBERED:
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                ink = "black" if value > 1 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    step = max(1, layers // 20)
    names = [f"{layer.layer_index}   {layer.imbalance:.2f}x" for layer in load.layers]
    axes.set_yticks(range(0, layers, step), names[::step], fontsize=7)
    axes.set(xlabel="expert", ylabel="layer, busiest expert divided by the mean")
    figure.colorbar(image, ax=axes, label="tokens divided by the layer's mean", extend="max", fraction=0.05, pad=0.02)
    figure.suptitle(f"{load.token_count:,} tokens in {load.window_seconds:.0f} s", fontsize=10)
    figure.savefig(file)


def _over_mean(counts: tuple[int, ...]) -> list[float]:
    mean = sum(counts) / len(counts) if counts else 0.0
    return [count / mean if mean else 1.0 for count in counts]
