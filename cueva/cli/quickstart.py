"""`cueva quickstart`: from nothing to a model that writes, and a report about it."""

from typing import Annotated, Any

import typer

from cueva.cli.common import Json, Watcher, count, duration, emit, result, say

EXAMPLES = (
    "cueva quickstart\n\ncueva quickstart --minutes 15 --folder runs/longer\n\ncueva quickstart --json > results.json"
)


def quickstart(
    folder: Annotated[str, typer.Option(help="Where the run lives.")] = "runs/quickstart",
    minutes: Annotated[
        float, typer.Option(help="Minutes of training; reading, measuring and the report come on top.")
    ] = 3.5,
    seed: Annotated[int, typer.Option(help="Of the weights, the order of the text, and the samples.", min=0)] = 0,
    preset: Annotated[
        str, typer.Option(help="Shape of the model; pocket has about ten million parameters.")
    ] = "pocket",
    steps: Annotated[int | None, typer.Option(help="End after so many steps, if that comes first.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Train a small model on Python's own library, let it write, and draw a report.

    Takes at most five minutes on two cores and needs no download. The same command goes on where it was stopped, and
    shows the results again once it is finished.
    """
    from cueva import api
    from cueva.train import open_display

    watcher = Watcher()
    say(f"a {preset} model, {duration(60 * minutes)} of training on Python's own library, in {folder}")
    done = api.quickstart(
        folder,
        minutes=minutes,
        steps=steps,
        seed=seed,
        preset=preset,
        display=open_display(),
        watch=watcher,
        say=watcher.say,
    )
    if done.stopped:
        say("cueva quickstart: stopped and saved; the same command goes on")
        raise typer.Exit(130)
    if done.before:
        say(f"this quickstart was finished before; delete {done.directory} to begin anew. Its results:")
    if as_json:
        emit(done.facts)
    else:
        result(format_results(done.facts))
    say(what_next(done.facts))


def format_results(facts: dict[str, Any]) -> str:
    """The results: what it wrote, then the figures."""
    lines = []
    for sample in facts["samples"]:
        lines += [f"It writes, after {sample['prompt']!r}:", *_quoted(sample["prompt"] + sample["text"]), ""]
    rows = [
        (
            "trained",
            f"{count(facts['steps'])} steps, {count(facts['tokens'])} tokens in {duration(facts['seconds'])}, "
            f"{count(facts['tokens_per_second'])} tokens/s",
        )
    ]
    if facts["held_out_bits_per_byte"] is not None:
        rows.append(("held out", f"{facts['held_out_bits_per_byte']:.3f} bits per byte"))
    if facts["held_out_acceptance"]:
        shares = ", ".join(f"{share:.0%}" for share in facts["held_out_acceptance"])
        rows.append(("MTP", f"guesses the model's own next choice in {shares} of places (greedy, held-out text)"))
    if facts["max_vio"] is not None:
        rows.append(
            (
                "balance",
                f"busiest expert of the worst layer {1 + facts['max_vio']:.2f}x the mean, that is MaxVio "
                f"{facts['max_vio']:.2f}, mean of the last {facts['max_vio_steps']} steps; "
                f"{facts['max_vio_together']:.2f} over these steps together",
            )
        )
    drafting = facts["drafting"]
    if drafting is not None:
        plain, drafted = drafting["plain_tokens_per_second"], drafting["drafted_tokens_per_second"]
        ratio = f" ({drafted / plain:.2f}x)" if plain else ""
        rows.append(("writing", f"{plain:.0f} tokens/s without drafting, {drafted:.0f} with{ratio}"))
        if drafting["first_draft_accepted"] is not None:
            rows.append(
                (
                    "drafts",
                    f"{drafting['first_draft_accepted']:.0%} of first drafts kept when sampling, "
                    f"{drafting['tokens_per_pass']:.2f} tokens per pass",
                )
            )
        if not drafting["greedy_text_is_the_same"]:
            rows.append(("drafts", "greedy text with drafting DIFFERS from greedy text without; please report this"))
    rows.append(("report", facts["report"]))
    return "\n".join([*lines, *(f"{name:<10}{value}" for name, value in rows)])


def what_next(facts: dict[str, Any]) -> str:
    """What a person may want to try."""
    model = facts["model"]
    return "\n".join(
        [
            "",
            "What to try next:",
            f"  open {facts['report']} in a browser",
            f'  cueva generate --model {model} --prompt "def "',
            f"  cueva chat --model {model}",
            f"  cueva inspect {model}",
            "  cueva train --preset pocket --data YOUR_FOLDER --minutes 20 --name mine",
        ]
    )


def _quoted(text: str) -> list[str]:
    clean = "".join(char if char.isprintable() or char == "\n" else " " for char in text.expandtabs(4))
    return [f"  | {line}" for line in clean.rstrip("\n").split("\n")]
