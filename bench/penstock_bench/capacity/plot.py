"""Plot tokens per second and cost against concurrency. It imports matplotlib when it draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock_bench.capacity.plan import CapacityPlan
from penstock_bench.capacity.report import rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can distinguish; markers repeat the meaning without colour.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_SIZE, _DPI = (9.0, 4.0), 200


def draw(plan: CapacityPlan, file: Path) -> None:
    """Write the plot to `file`, in the format of its suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    speed, money = figure.subplots(1, 2)
    _speed(speed, plan)
    _cost(money, plan)
    for axes in (speed, money):
        axes.set_xlabel("requests at once")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    setup, layout = plan.setup, plan.setup.layout
    said = plan.fit.correction.source if plan.fit else "computed"
    spread = f"tensor {layout.tensor} x data {layout.data}"
    figure.suptitle(f"{setup.model}, {setup.count} x {setup.device.name}, {spread}; {said}", fontsize=9)
    figure.savefig(file)


def _speed(axes: Axes, plan: CapacityPlan) -> None:
    made = rows(plan)
    x = [row["concurrency"] for row in made]
    for name, colour, marker, label in (
        ("decode_tokens_per_second", _BLUE, "o", "decoding alone"),
        ("output_tokens_per_second", _ORANGE, "v", "in the mix, beside its prompts"),
    ):
        axes.plot(x, [row[name] for row in made], color=colour, marker=marker, markersize=4, label=label)
    axes.set(ylabel="output tokens per second", ylim=(0, None))
    beside = axes.twinx()
    beside.plot(x, [row["stream_tokens_per_second"] for row in made], color=_GREY, linestyle=":", label="one stream")
    beside.set(ylabel="tokens per second of one stream (dotted)", ylim=(0, None))
    beside.spines[["top"]].set_visible(False)
    beside.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _cost(axes: Axes, plan: CapacityPlan) -> None:
    made = rows(plan)
    if not plan.costs:
        axes.text(0.5, 0.5, "no price per hour", ha="center", transform=axes.transAxes, fontsize=8)
        return
    x = [row["concurrency"] for row in made]
    output = [row["output_usd_per_million"] for row in made]
    axes.plot(x, output, color=_BLUE, marker="o", markersize=4, label="output and thought")
    axes.plot(x, [row["input_usd_per_million"] for row in made], color=_GREEN, marker="s", markersize=4, label="input")
    if hosted := plan.wanted.hosted:
        axes.axhline(hosted.output_usd, color=_BLUE, linestyle="--", linewidth=1, label="hosted output")
        axes.axhline(hosted.input_usd, color=_GREEN, linestyle="--", linewidth=1, label="hosted input")
    axes.set(ylabel="USD per million tokens")
    axes.set_yscale("log")
    axes.legend(fontsize=8, frameon=False)
