"""`cueva eval --model PATH SOURCES...`: how well a model predicts a text."""

from typing import Annotated

import typer

from cueva.cli.common import Json, Model, Watcher, count, emit, result

EXAMPLES = (
    "cueva eval --model runs/quickstart/model README.md"
    "\n\ncueva eval --model runs/quickstart/model python --held-out 0.02"
    "\n\ncueva eval --model runs/quickstart/model hf:roneneldan/TinyStories:validation --limit 1000000 --json"
)


def evaluate(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES...", help="Files, folders, globs, hf:NAME[:SPLIT], - for standard input, or python."
        ),
    ],
    length: Annotated[
        int | None, typer.Option(help="Positions of a row (default: 1024, or what the model has).", min=2)
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Score only the documents that a run with this data.held_out_share kept out of training.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Read no more than this many bytes of text.", min=1)] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or auto, as they are stored.")] = "auto",
    text_key: Annotated[str, typer.Option(help="Where a JSON line or a table keeps its text.")] = "text",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on, counting, when a text cannot be used.")] = False,
    as_json: Json = False,
) -> None:
    """Measure bits per byte and perplexity of a text, and what MTP drafting would accept.

    Bits per byte can be compared between models whatever their tokenizers; perplexity is per token and cannot.
    """
    from cueva import api

    watcher = Watcher()
    found = api.evaluate(
        model,
        sources,
        length=length,
        held_out_share=held_out,
        limit_bytes=limit,
        dtype=dtype,
        text_key=text_key,
        skip_bad=skip_bad,
        watch=watcher,
    )
    watcher.close()
    if as_json:
        emit(found.facts())
        return
    rows = [
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        ("perplexity", f"{found.perplexity:.3f} per token"),
        ("loss", f"{found.loss:.4f} nats per token"),
        (
            "text",
            f"{count(found.documents)} documents, {count(found.bytes)} bytes, {count(found.tokens)} tokens scored",
        ),
    ]
    for depth, (loss, share) in enumerate(zip(found.mtp_loss, found.acceptance, strict=True), start=1):
        rows.append((f"MTP depth {depth}", f"loss {loss:.4f} nats per token, greedy acceptance {share:.1%}"))
    result("\n".join(f"{name:<15}{value}" for name, value in rows))
    for reason, times in found.skipped.items():
        result(f"{'left out':<15}{count(times)} texts: {reason}")
