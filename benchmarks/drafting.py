"""What drafting with the model's own MTP modules gains, at every acceptance, and whether "auto" finds the best depth.

A random model's drafts are never right, so acceptance is forced, and the result says so: a seeded coin decides for
every place of the text whether a draft of it is right; the runner is wrapped so that the drafter's likeliest token is
the true next one, or a wrong one. All else is the engine as it is: the modules run, drafts are verified, the text is
that of plain decoding (which is checked), and "auto" learns costs and acceptance by itself.

For each acceptance a new engine answers each prompt plainly, with every fixed number of drafts, and with "auto", in
turn; once with drafts from the whole vocabulary, and once from a quarter of it that holds the text's own tokens, as a
vocabulary chosen by use would.
"""

import logging
import statistics
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import cueva
from benchmarks.contestant import tokens_of
from benchmarks.shapes import Files
from cueva.engine import Engine, frequent_ids
from cueva.engine.controller import MOST_AUTO
from cueva.engine.passes import Done, Work
from cueva.errors import RequestError, RunError

log = logging.getLogger("benchmarks")

ACCEPTANCES: Final = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
SHARE: Final = 4
"""The reduced vocabulary is one id in so many."""


class ForcedDrafts:
    """Stands before an engine's runner and makes its drafts right or wrong, as a coin fell."""

    def __init__(self, runner: Any, prompt_tokens: int, text: Sequence[int], right: NDArray[np.bool_]):
        """Wrap the runner until `end`.

        Args:
            runner: of an engine with one sequence.
            prompt_tokens: length of the prompt.
            text: the answer that plain decoding gives.
            right: for each of its tokens, whether a draft of it shall be right.
        """
        self._runner, self._prompt = runner, prompt_tokens
        self._text, self._right = text, right
        self._mtp, self._decode = runner.mtp, runner.decode
        self._step = 0
        runner.mtp, runner.decode = self.mtp, self.decode

    def end(self) -> None:
        """Leave the runner as it was."""
        self._runner.mtp, self._runner.decode = self._mtp, self._decode

    def decode(self, work: Sequence[Work]) -> list[Done]:
        """A round ends: the next draft is the first again."""
        self._step = 0
        return self._decode(work)

    def mtp(self, depth: int, work: Sequence[Work], *, ids: NDArray[np.int64] | None = None, **rest: Any) -> list[Done]:
        """Draft, and put the coin's token first."""
        done = self._mtp(depth, work, ids=ids, **rest)
        self._step += 1
        for item, one in zip(work, done, strict=True):
            # The main model has seen all tokens before the newest one; draft k is k places behind that one.
            place = item.cache.length(0) + self._step - self._prompt
            if 0 <= place < len(self._text) and len(one.logits_NA):
                column = self._column(place, ids)
                if column is not None:
                    one.logits_NA[-1, column] = 1e9
        return done

    def _column(self, place: int, ids: NDArray[np.int64] | None) -> int | None:
        true = self._text[place]
        if not self._right[place]:
            first = 0 if ids is None else int(ids[0])
            return 1 if first == true else 0
        if ids is None:
            return true
        column = int(np.searchsorted(ids, true))
        return column if column < len(ids) and ids[column] == true else None


def measure_drafting(
    files: Files,
    weights: Sequence[str],
    prompts: Sequence[int],
    threads: int,
    repeats: int,
    new_tokens: int,
    *,
    acceptances: Sequence[float] = ACCEPTANCES,
) -> list[dict[str, Any]]:
    """Measure every weight format, vocabulary, acceptance and prompt length.

    Returns:
        For each: `weights`, `vocabulary` ("whole", or the number of ids), `cached` (the prompt's tokens), `acceptance`
        (always `forced`), `accepted` (the share of single drafts that did stay), `rates` (tokens per second by number
        of drafts and repetition), `plain` (the median without drafts), `times_plain` (by number of drafts, and "auto":
        how many times that, median of pairs), `auto_first` (the first answer, while it still learned), `auto_of_best`
        (auto beside the best fixed number, zero included), `rounds` (how many rounds of auto drafted 0, 1, ... tokens)
        and `prefill_times` (seconds of a prompt that the modules see too, beside one that they do not).

    Raises:
        RequestError: the model has no MTP modules, or no prompt fits.
        RunError: drafting changed the text.
    """
    if not files.config.num_nextn_predict_layers:
        raise RequestError(f"{files.name} has no MTP modules, so there is nothing to draft with")
    if not prompts:
        raise RequestError("no prompt length fits this model and --tokens", way_out="try --cached 16 --tokens 64")
    found = []
    for one in weights:
        texts = _texts(files, one, prompts, threads, new_tokens)
        ids_V = frequent_ids(
            [token for text in texts.values() for token in text],
            files.config.vocab_size // SHARE,
            files.config.vocab_size,
        )
        for vocabulary in (None, ids_V):
            for acceptance in acceptances:
                engine = _engine(files, one, prompts, threads, new_tokens, vocabulary)
                for cached in prompts:
                    row = _compare(engine, cached, texts[cached], acceptance, repeats)
                    row |= {"weights": one, "vocabulary": "whole" if vocabulary is None else f"{len(vocabulary)} ids"}
                    log.info(
                        "%s, %s, %d cached, acceptance %.2f: plain %.1f tokens/s, auto %.2fx",
                        *(row[name] for name in ("weights", "vocabulary", "cached", "acceptance", "plain")),
                        row["times_plain"]["auto"],
                    )
                    found.append(row)
    return found


def _engine(
    files: Files, weights: str, prompts: Sequence[int], threads: int, new_tokens: int, vocabulary: Any
) -> Engine:
    return cueva.Engine(
        files.directory,
        weights=weights,
        threads=threads,
        cache_tokens=max(prompts) + new_tokens,
        draft_vocabulary=vocabulary,
    )


def _prompt(engine: Engine, cached: int) -> list[int]:
    return tokens_of(engine.config.vocab_size, cached)


def _answer(engine: Engine, cached: int, new_tokens: int, draft: Any) -> Any:
    sampling = cueva.Sampling(max_new_tokens=new_tokens, temperature=0, ignore_eos=True)
    return engine.generate([_prompt(engine, cached)], sampling, draft=draft)[0]


def _texts(
    files: Files, weights: str, prompts: Sequence[int], threads: int, new_tokens: int
) -> dict[int, tuple[int, ...]]:
    """What plain decoding answers to each prompt."""
    engine = _engine(files, weights, prompts, threads, new_tokens, None)
    return {cached: _answer(engine, cached, new_tokens, 0).token_ids for cached in prompts}


def _compare(engine: Engine, cached: int, text: Sequence[int], acceptance: float, repeats: int) -> dict[str, Any]:
    right = np.random.default_rng(len(text)).random(len(text)) < acceptance
    numbers: list[Any] = [*range(MOST_AUTO + 1), "auto"]
    rates: dict[Any, list[float]] = {number: [] for number in numbers}
    prefill: dict[Any, list[float]] = {number: [] for number in numbers}
    accepted = 0.0
    before = engine.drafting().rounds
    forced = ForcedDrafts(engine.runner, cached, text, right)
    try:
        for _ in range(repeats):
            for number in numbers:
                answer = _answer(engine, cached, len(text), number)
                if tuple(answer.token_ids) != tuple(text):
                    raise RunError(f"draft={number!r} changed the text of a {cached}-token prompt; it must not")
                # The first token comes with the prompt.
                rates[number].append((answer.stats.new_tokens - 1) / answer.stats.decode_seconds)
                prefill[number].append(answer.stats.prefill_seconds)
                if number == 1:
                    accepted = sum(answer.stats.accepted) / max(sum(answer.stats.drafted), 1)
    finally:
        forced.end()
    times = {
        str(number): statistics.median(a / b for a, b in zip(rates[number], rates[0], strict=True))
        for number in numbers
        if number != 0
    }
    return {
        "cached": cached,
        "acceptance": acceptance,
        "forced": True,
        "accepted": accepted,
        "rates": {str(number): some for number, some in rates.items()},
        "plain": statistics.median(rates[0]),
        "times_plain": times,
        "auto_first": rates["auto"][0] / rates[0][0],
        "auto_of_best": times["auto"] / max(1.0, *(times[str(number)] for number in range(1, MOST_AUTO + 1))),
        "rounds": [
            now - (before[number] if number < len(before) else 0) for number, now in enumerate(engine.drafting().rounds)
        ],
        "prefill_times": statistics.median(a / b for a, b in zip(prefill[1], prefill[0], strict=True)),
    }
