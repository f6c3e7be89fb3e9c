"""`cueva train`: a run from a configuration, begun or gone on with."""

import json
from typing import Annotated, Any

import typer

from cueva.cli.common import Json, Watcher, count, duration, emit, result, say, size

EXAMPLES = (
    "cueva train --config examples/your_text.toml"
    "\n\ncueva train --preset pocket --data notes/ --minutes 20 --name notes"
    "\n\ncueva train --config run.toml --set optimizer.lr=3e-4 --set schedule.name=cosine --plan"
)


def train(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="FILE.toml", help="The run; docs/training.md lists every key."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Change one key; may be given several times, the last wins."
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Shape of the model: the same as --set model.preset=...")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to train on (file, folder, glob, hf:NAME, python); may be given several times."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run, a folder below runs/ (default: default).")] = None,
    steps: Annotated[int | None, typer.Option(help="Length in optimizer steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Length in minutes of training.")] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print parameters, memory, tokens and time, and stop before anything is done."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on with a run although its settings or its text have changed.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Train a model.

    The same command goes on where the run stopped, however it stopped; settings that differ are shown and refused
    unless --force is given. Ctrl-C finishes the step and saves; a second one stops at once and loses what was not
    saved.
    """
    from cueva import api
    from cueva.train import open_display, read_train_config

    shortcuts: list[tuple[str, Any]] = [
        ("model.preset", preset),
        ("data.sources", data or None),
        ("run.name", name),
        ("run.steps", steps),
        ("run.minutes", minutes),
    ]
    # TOML and JSON write strings, numbers and lists of strings alike.
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in shortcuts if value is not None]
    settings = read_train_config(config, [*given, *(changes or [])])
    if plan:
        facts = api.plan(settings)
        emit(facts) if as_json else result(format_plan(facts))
        return
    watcher = Watcher()
    watch, talk = (None, None) if quiet else (watcher, watcher.say)
    done = api.train(settings, force=force, display=open_display(quiet=quiet), watch=watch, say=talk)
    if as_json:
        emit(api.run_facts(done))
    elif not done.stopped:
        say(f"the model is in {done.directory / 'model'}, the report in {done.directory / 'report.html'}")
        say(f"  try cueva generate --model {done.directory / 'model'}")
    if done.stopped:
        say(f"cueva train: stopped after step {done.step}, saved; the same command goes on")
        raise typer.Exit(130)


def format_plan(facts: dict[str, Any]) -> str:
    """What a run will need, one fact a line."""
    memory = facts["memory_bytes"]
    parts = ", ".join(f"{name} {size(value)}" for name, value in memory.items() if name != "total")
    length = []
    if facts["steps"] is not None:
        length.append(f"{count(facts['steps'])} steps")
    if facts["tokens"] is not None:
        length.append(f"{'about ' if facts['steps'] is None else ''}{count(facts['tokens'])} tokens")
    time = "unknown: there is no measured speed" if facts["seconds"] is None else f"about {duration(facts['seconds'])}"
    speed = facts["tokens_per_second"]
    if speed is not None:
        time += f", at {count(speed)} tokens/s"
    rows = [
        ("run", facts["directory"]),
        (
            "model",
            f"{facts['preset']}: {count(facts['parameters'])} parameters, {count(facts['parameters_active'])} active",
        ),
        ("MTP", f"{count(facts['parameters_mtp'])} parameters more"),
        ("step", f"{count(facts['rows_per_step'])} rows, {count(facts['tokens_per_step'])} tokens"),
        ("length", ", ".join(length) or "as long as the minutes last"),
        ("time", time),
        ("memory", f"about {size(memory['total'])}: {parts}"),
        (
            "disk",
            f"{size(facts['model_bytes'])} for the model, {size(facts['state_bytes'])} for each of "
            f"{facts['states_kept']} states",
        ),
    ]
    return "\n".join(f"{name:<8}{value}" for name, value in rows)
