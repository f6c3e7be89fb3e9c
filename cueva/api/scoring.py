"""How well a model predicts a text: bits per byte, perplexity, and what drafting would accept."""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cueva.api.models import load
from cueva.api.texts import Watch
from cueva.api.training import token_bytes
from cueva.checkpoint import resolve
from cueva.errors import ConfigError, TextError
from cueva.text import Corpus, Document, Tokenizer, held_out, sequential, tokenize
from cueva.train import TrainConfig, dials
from cueva.train import evaluate as evaluate_rows
from cueva.train.settings import RunSettings

LONGEST_ROW: Final = 1024
"""Positions of a row unless the caller says otherwise, or the model has fewer."""
AT_ONCE: Final = 4
"""Rows computed together."""


@dataclass(frozen=True)
class Score:
    """What a model made of a text. Every token but the begin tokens is predicted once, the end tokens included."""

    bits_per_byte: float
    """Bits the model needs for a byte of text: comparable whatever the tokenizer."""
    loss: float
    """Nats per token."""
    mtp_loss: tuple[float, ...]
    """Nats per token of each MTP depth."""
    acceptance: tuple[float, ...]
    """How often each depth's likeliest token is the main model's for the same place: what greedy drafting keeps."""
    tokens: int
    """Tokens predicted."""
    bytes: int
    """UTF-8 bytes of the texts."""
    documents: int
    skipped: dict[str, int]
    """Texts that were left out, by reason."""

    @property
    def perplexity(self) -> float:
        """Per token; cannot be compared between tokenizers."""
        return math.exp(self.loss)

    def facts(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return dataclasses.asdict(self) | {"perplexity": self.perplexity}


def evaluate(
    path: str | os.PathLike[str],
    sources: Sequence[str],
    *,
    length: int | None = None,
    held_out_share: float | None = None,
    limit_bytes: int | None = None,
    dtype: str = "auto",
    text_key: str = "text",
    skip_bad: bool = False,
    watch: Watch | None = None,
) -> Score:
    """Score a text with a model.

    Documents longer than a row are cut into pieces that see nothing of each other, so a shorter `length` costs bits.

    Args:
        path: a model directory, or a name on the hub.
        sources: files, folders, globs, `hf:NAME[:SPLIT]`, `-`, `python`.
        length: positions of a row; None: 1024, or as many as the model has.
        held_out_share: score only what a run with this `data.held_out_share` kept out of its training.
        limit_bytes: read no more text than this, but at least one document.
        dtype: of the weights: "float32", "bfloat16" or "auto", as they are stored.
        text_key: where a JSON line or a table keeps its text.
        skip_bad: go on, counting, when a text cannot be used.
        watch: told how it goes on.

    Raises:
        CheckpointError, ConfigError: there is no such model, or it has fewer positions than `length`.
        TextError: the text is missing, empty, or cannot be used.
    """
    folder = resolve(path)
    tokenizer = Tokenizer.load(folder)
    model = load(folder, dtype)
    positions = model.config.max_position_embeddings
    if length is not None and length > positions:
        raise ConfigError(
            f"rows of {length} positions were asked for, but this model has {positions}",
            way_out=f"try --length {positions}",
        )
    if tokenizer.size > model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.size} tokens, but the model has rows for {model.config.vocab_size} only"
        )
    corpus = Corpus(sources, skip_bad=skip_bad, text_key=text_key)
    try:
        shards = tokenize(_chosen(corpus, held_out_share, limit_bytes), tokenizer)
    except TextError as error:
        if held_out_share is None or error.message != "there are no documents in this text":
            raise
        raise TextError(
            f"no document of this text is held out with a share of {held_out_share}",
            way_out="try a larger share, or score all of it",
        ) from error
    rows = _Watched(sequential(shards, length or min(LONGEST_ROW, positions)), watch)
    # Only the document mask and the precision of the dials matter here; a model computes in what it is stored in.
    settings = dials(TrainConfig(run=RunSettings(steps=1)), 1.0)
    found = evaluate_rows(model, rows, len(rows), AT_ONCE, settings, token_bytes(tokenizer, model.config.vocab_size))
    bits = found.loss * found.targets / math.log(2) / shards.bytes if shards.bytes else math.nan
    return Score(
        bits_per_byte=bits,
        loss=found.loss,
        mtp_loss=found.mtp_loss,
        acceptance=found.acceptance,
        tokens=found.targets,
        bytes=shards.bytes,
        documents=len(shards),
        skipped=dict(corpus.skipped),
    )


# --- private ----------------------------------------------------------------------------------------------------------


def _chosen(corpus: Corpus, share: float | None, limit_bytes: int | None) -> Iterator[Document]:
    read = 0
    for document in corpus:
        if share is not None and not held_out(document.source, share):
            continue
        size = len(document.text.encode("utf-8", "replace"))
        if limit_bytes is not None and read and read + size > limit_bytes:
            return
        read += size
        yield document


class _Watched:
    """Rows that tell how many tokens were handed out."""

    def __init__(self, rows: Any, watch: Watch | None):
        self._rows, self._watch = rows, watch
        self.rows_per_epoch = len(rows)
        self._done = 0

    def __len__(self) -> int:
        return self.rows_per_epoch

    def batch(self, step_rows: Sequence[int]) -> Any:
        self._done += len(step_rows)
        if self._watch is not None:
            length = self._rows.length
            self._watch("scored", "positions", self._done * length, self.rows_per_epoch * length)
        return self._rows.batch(step_rows)
