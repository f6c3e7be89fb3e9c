"""`cueva prepare SOURCES... --out FOLDER`: text to token shards, once, for many runs."""

from typing import Annotated

import typer

from cueva.cli.common import Json, Watcher, count, emit, result, size

EXAMPLES = (
    "cueva prepare notes/ 'articles/*.jsonl.gz' --out shards/notes --vocab-size 8192"
    "\n\ncueva prepare hf:roneneldan/TinyStories:train --out shards/stories --tokenizer runs/quickstart/model"
    "\n\ncat corpus.txt | cueva prepare - --out shards/corpus"
)


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES...",
            help="Files (.txt .md .py .jsonl .jsonl.gz .parquet), folders, globs, hf:NAME[:SPLIT], - for standard "
            "input, or python: the sources of Python's own library.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Where the shards and the tokenizer go.")],
    tokenizer: Annotated[
        str,
        typer.Option(help="train: learn one from the text; otherwise a folder or a tokenizer.json.", metavar="PATH"),
    ] = "train",
    vocab_size: Annotated[int, typer.Option(help="Tokens of a tokenizer to be trained.", min=2)] = 8192,
    held_out_share: Annotated[
        float, typer.Option(help="Share of the documents, chosen by a hash of their names, kept out of training.")
    ] = 0.02,
    text_key: Annotated[str, typer.Option(help="Where a JSON line or a table keeps its text.")] = "text",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on, counting, when a text cannot be used.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make the folder anew if it was prepared from something else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn text into memory-mapped token shards.

    The same command goes on where it was killed, and does nothing when the shards are there. To train on them, name the
    folder as the only source: cueva train --data FOLDER. A run can also prepare text by itself.
    """
    from cueva import api

    watcher = Watcher()
    made = api.prepare(
        sources,
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        held_out_share=held_out_share,
        text_key=text_key,
        skip_bad=skip_bad,
        replace=replace,
        watch=watcher,
        say=watcher.say,
    )
    watcher.close()
    if as_json:
        emit({"folder": str(made.folder), "reused": made.reused, **made.manifest, "notes": list(made.notes)})
    else:
        train = made.manifest["train"]
        result(f"{made.folder}: {count(train['tokens'])} tokens to train on, of {size(train['bytes'])} of text")
