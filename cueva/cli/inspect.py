"""`cueva inspect PATH`: what a model directory holds."""

from typing import Annotated

import typer

from cueva.cli.common import Json, emit, result

EXAMPLES = "cueva inspect runs/quickstart/model\n\ncueva inspect moonshotai/Moonlight-16B-A3B-Instruct --json"


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A model directory, or the name of one on the hub.")],
    as_json: Json = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Do not compare the copies that MTP modules bring, which reads up to 2 GB each."),
    ] = False,
) -> None:
    """Say what a model directory holds: shape, parameters, bytes, cache per token, and anything unusual.

    Only headers are read; no weights are loaded.
    """
    from cueva.checkpoint import resolve
    from cueva.study import format_inspection, inspect_model

    facts = inspect_model(resolve(path), compare_copies=not quick)
    if as_json:
        emit(facts)
    else:
        result(format_inspection(facts))
