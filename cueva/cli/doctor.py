"""`cueva doctor`: what this machine can do, and what will be slow on it."""

from typing import Annotated

import typer

from cueva.cli.common import Json, emit, result

EXAMPLES = "cueva doctor\n\ncueva doctor --json > machine.json"


def doctor(
    as_json: Json = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the measurements, which take about 1 second.")
    ] = False,
) -> None:
    """Look at the machine, the versions and the kernels, and say what will be slow and why.

    Paste its output into a report of a problem; it shows no secrets.
    """
    from cueva.study import examine, format_examination

    facts = examine(measured=not quick)
    if as_json:
        emit(facts)
    else:
        result(format_examination(facts))
