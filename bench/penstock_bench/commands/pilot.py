"""Run a graded sequence of loads on a running service and write a report: `penstock pilot`."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from penstock.cli import options as o
from penstock.cli.failures import nothing_measured
from penstock_bench.commands.bench_options import parsed
from penstock_bench.commands.pilot_run import PilotRun

if TYPE_CHECKING:
    from penstock_bench.gpu_check.results import GpuCheck
    from penstock_bench.pilot.results import Result
    from penstock_bench.pilot.scenario import Scenario
    from rich.console import Console

_OBJECTIVES = ("first-token=1", "per-token=0.1")


# One parameter for each option.
def pilot(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory for pilot.html, pilot.md and pilot.json.")
    ] = Path("pilot"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Run for a few minutes on two cores instead of an hour.")
    ] = False,
    concurrency: Annotated[str | None, typer.Option(help="Numbers of callers to measure, such as 1,8,64.")] = None,
    context: Annotated[str | None, typer.Option(help="Prompt lengths to measure, in tokens.")] = None,
    budgets: Annotated[str | None, typer.Option(help="Thinking budgets to measure, in tokens; -1 is no limit.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Number of questions at each budget.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.2, help="Seconds to measure in each stage.")] = None,
    soak_seconds: Annotated[float | None, typer.Option(min=0.2, help="Seconds of the soak.")] = None,
    knee_points: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Largest number of rates in the search for the knee; 0: no search."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SECONDS", help=f"As in `penstock bench`. Default: {', '.join(_OBJECTIVES)}."),
    ] = None,
    gpu_hour_usd: Annotated[float | None, typer.Option(min=0, help="Price of one GPU (or machine) per hour.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs (or machines) of the service.")] = 1,
    hosted_input_usd: Annotated[
        float | None, typer.Option(min=0, help="Hosted list price per million input tokens. Default: the price list's.")
    ] = None,
    hosted_output_usd: Annotated[
        float | None,
        typer.Option(min=0, help="Hosted list price per million output tokens. Default: the price list's."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="URL", help="URL of the service's Prometheus endpoint, http://host:port/metrics."),
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option(
            help="Process id of the service on this machine. Default: the one that listens at the target on loopback."
        ),
    ] = None,
    gpu_check: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File of `penstock gpu-check`, to be a section of the report."),
    ] = None,
    plan_device: Annotated[
        str | None,
        typer.Option(
            help="Device of the service, as in `penstock plan --device`. Default: what nvidia-smi or the engine tells."
        ),
    ] = None,
    plan_model: Annotated[
        str | None,
        typer.Option(help="Known name, directory or config.json of the model. Default: the served name."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            exists=True,
            dir_okay=False,
            help="File of an earlier result whose report to write, without measuring.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, too.")] = False,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Measure a running service from one caller to its limits, and write a report with costs and red flags.

    It measures numbers of callers, prompt lengths and thinking budgets (with accuracy), then rates, bursts and a soak.
    Ctrl-C writes the report so far. `penstock plan --calibrate pilot.json` reads the result.
    """
    from penstock_bench.load.statistics import Objectives
    from rich.console import Console

    _refuse_file(out)
    given = {"hour": gpu_hour_usd, "hosted_input": hosted_input_usd, "hosted_output": hosted_output_usd}
    notes = Console(stderr=True)
    checked, plan = _read_check(gpu_check), _plan(plan_device, plan_model)
    if report is not None:
        _write(plan(_checked(_priced(_read(report), given, gpus), checked)), out, json, notes)
        return
    scenario = _scenario(quick, concurrency, context, budgets, questions, seconds, soak_seconds)
    if knee_points is not None:
        scenario = replace(scenario, knee_points=knee_points)
    objectives = parsed(Objectives.parse, objective or list(_OBJECTIVES), "--objective")
    run = PilotRun(scenario, objectives, quick, notes)
    exit_code = run.measure(target, o.encryption(tls, ca), metrics, pid)
    result = run.result(target)
    if result is not None:
        _write(plan(_checked(_priced(result, given, gpus), checked)), out, json, notes)
    else:
        exit_code = nothing_measured(
            exit_code, "the pilot ended before the first measurement, so no report was written"
        )
    if exit_code:
        raise typer.Exit(exit_code)


def _refuse_file(out: Path) -> None:
    """Check that the directory can be written before the work, not after it."""
    o.refuse_unwritable(("--out", out / "pilot.json" if out.is_dir() else out))


def _read(file: Path) -> Result:
    from penstock_bench.pilot.results import read

    try:
        return read(file)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--report") from None


def _read_check(file: Path | None) -> GpuCheck | None:
    """Read it before the pilot: it should not fail at its end."""
    from penstock_bench.gpu_check.results import read

    try:
        return None if file is None else read(file)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--gpu-check") from None


def _checked(result: Result, check: GpuCheck | None) -> Result:
    """Return the result with a check of the engine; without one, an earlier one stays."""
    return result if check is None else result.model_copy(update={"gpu_check": check.model_dump(mode="json")})


def _plan(device: str | None, model: str | None) -> Callable[[Result], Result]:
    """Return a function that adds what `penstock plan` says. The options are read now, not at the pilot's end.

    An earlier result keeps the plan that it has, unless an option asks for another one.
    """
    from penstock_bench.capacity.devices import find_device, load_devices
    from penstock_bench.commands.plan import known_shape, shape_of
    from penstock_bench.pilot.planned import compare, device_of
    from penstock_bench.pilot.sections_limits import is_scripted

    devices = load_devices()
    wanted = None if device is None else find_device(devices, device)
    given = None if model is None else shape_of(model)

    def planned(result: Result) -> Result:
        """Return the result with the plan's figures, or with the reason why there are none."""
        if is_scripted(result) or (result.plan is not None and wanted is None and given is None):
            return result
        key = device_of(result, devices)
        chosen = wanted or (None if key is None else devices[key])
        plan = compare(result, given or known_shape(result.model), chosen)
        return result.model_copy(update={"plan": plan})

    return planned


# One parameter for each option.
def _scenario(
    quick: bool,
    concurrency: str | None,
    context: str | None,
    budgets: str | None,
    questions: int | None,
    seconds: float | None,
    soak_seconds: float | None,
) -> Scenario:
    from penstock_bench.pilot.scenario import FULL, QUICK

    scenario = QUICK if quick else FULL
    changed: dict[str, Any] = {}
    for name, text, least in (("concurrencies", concurrency, 1), ("contexts", context, 1), ("budgets", budgets, -1)):
        if text is not None:
            changed[name] = _whole(text, least, name)
    if seconds is not None:
        changed |= dict.fromkeys(("concurrency_seconds", "rate_seconds", "context_seconds"), seconds)
        changed |= {"burst_every_seconds": seconds, "warm_up_seconds": min(scenario.warm_up_seconds, seconds / 2)}
    changed |= {"questions": questions} if questions is not None else {}
    changed |= {"soak_seconds": soak_seconds} if soak_seconds is not None else {}
    return replace(scenario, **changed)


def _whole(text: str, least: int, name: str) -> tuple[int, ...]:
    option = {"concurrencies": "--concurrency", "contexts": "--context"}.get(name, f"--{name}")
    try:
        numbers = tuple(int(one) for one in text.split(",") if one.strip())
    except ValueError:
        numbers = ()
    if not numbers or any(not least <= number < 2**31 for number in numbers):
        raise typer.BadParameter(
            f"must be numbers of at least {least}, separated by commas, got {text!r}", param_hint=option
        )
    return numbers


def _priced(result: Result, given: dict[str, float | None], gpus: int) -> Result:
    """Return the result with the given prices; hosted ones default to the service's price list for short prompts."""
    from penstock_bench.pilot.results import Prices

    known = {name: value for name, value in given.items() if value is not None}
    if not known and result.prices != Prices():
        return result
    before = result.prices
    tiers = result.served["prices_usd_per_million"]
    listed = tiers[0] if tiers else {}
    prices = Prices(
        hour=known.get("hour", before.hour),
        gpus=gpus,
        hosted_input=known.get("hosted_input", _float(listed.get("input_usd_per_million"))),
        hosted_output=known.get("hosted_output", _float(listed.get("output_usd_per_million"))),
        hosted_source="given" if "hosted_output" in known else "the service's own price list" if listed else "",
    )
    return result.model_copy(update={"prices": prices})


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _write(result: Result, out: Path, json: bool, notes: Console) -> None:
    """Write the three files, and print the summary on stdout."""
    from penstock.files import write_text
    from penstock_bench.pilot.flag import State
    from penstock_bench.pilot.render import to_html, to_markdown
    from penstock_bench.pilot.report import document

    made = document(result)
    text = json_module.dumps(result.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    if json:
        typer.echo(text, nl=False)
    else:
        for tile in made.tiles:
            typer.echo(f"{tile.label:<24}{tile.value:<18}{tile.note}")
        for sentence in made.summary:
            typer.echo(sentence)
        for flag in made.flags:
            if flag.state is State.RAISED:
                typer.echo(f"RED FLAG  {flag.title}: {flag.evidence}")
    # Written last, so that a full disk does not lose the summary.
    out.mkdir(exist_ok=True)
    write_text(out / "pilot.json", text)
    write_text(out / "pilot.html", to_html(made))
    write_text(out / "pilot.md", to_markdown(made, "pilot.html"))
    if not json:
        notes.out(f"written: {out / 'pilot.html'}, pilot.md, pilot.json", highlight=False)
