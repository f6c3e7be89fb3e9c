"""One request on its way: its cache, its tokens so far, and when it ends."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cueva.engine.acceptance import Draft, Verdict, draw_draft, draw_token, verify
from cueva.engine.answers import Answer, FinishReason, Piece, Stats
from cueva.engine.controller import NOMINAL_MARGIN, DraftController
from cueva.engine.drafting import ModuleChain
from cueva.engine.draws import SeededDraws
from cueva.engine.passes import Cache, Passes
from cueva.engine.sampling import Among, TokenLogprob, log_probability
from cueva.engine.settings import Settings
from cueva.engine.stops import Decoder, ShownText

Cancel = Callable[[], bool]
"""Asked between rounds; saying yes ends the request."""


@dataclass(frozen=True)
class Request:
    """A request that was checked and fits."""

    prompt: list[int]
    settings: Settings
    max_new_tokens: int
    draft: int | Literal["auto"]
    ends: frozenset[int]
    """Tokens that end the answer."""
    usable: int
    """Ids from here on are never chosen."""
    decoder: Decoder
    cancel: Cancel | None = None

    @property
    def positions(self) -> int:
        """Cache positions it may come to need."""
        return len(self.prompt) + self.max_new_tokens


class Running:
    """A request that has a cache (or, waiting, has none yet)."""

    def __init__(self, number: int, request: Request, runner: Passes):
        self.number = number
        """Its place in the call."""
        self.request = request
        self.runner = runner
        self.cache: Cache | None = None
        self.chain: ModuleChain | None = None
        self.answer: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.controller: DraftController | None = None
        """Of its own if it samples: what a neighbour's drafts did must not change its text."""
        if request.draft == "auto" and not request.settings.greedy:
            self.controller = DraftController(margin=NOMINAL_MARGIN)
        self.reduced = False
        """Whether it samples and drafts from the reduced vocabulary (`plan.py`)."""
        self._draws = SeededDraws(request.settings.seed)
        self._shown = ShownText(request.decoder, request.settings.stop)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._drafted: list[int] = []
        self._proposed: list[int] = []
        self._stayed: list[int] = []
        self._passes = 0
        self._began = self._first = self._last = time.perf_counter()

    @property
    def tokens(self) -> list[int]:
        """The prompt and the answer so far (t_0 .. t_n)."""
        return self.request.prompt + self.answer

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.request.prompt) + len(self.answer)

    @property
    def cancelled(self) -> bool:
        """Whether somebody wishes it to end."""
        return self.request.cancel is not None and self.request.cancel()

    @property
    def shares_controller(self) -> bool:
        """Whether it drafts as many tokens as the engine finds best by the clock: a greedy request with "auto"."""
        return self.request.draft == "auto" and self.controller is None and self.chain is not None

    @property
    def draft_limit(self) -> int:
        """Drafts that can still be of use: a round gives one token more than it drafts."""
        return 0 if self.chain is None else self.request.max_new_tokens - len(self.answer) - 1

    # --- the prompt ---------------------------------------------------------------------------------------------------

    def prefill(self, *, drafting: bool) -> Piece:
        """Run the prompt, chunk by chunk, and decide the first token from its last row. The cache must be there.

        Args:
            drafting: whether the MTP modules see the prompt too, without which they cannot draft.
        """
        cache = self.cache
        assert cache is not None
        self._began = self._first = self._last = time.perf_counter()
        if drafting and self.runner.depths:
            self.chain = ModuleChain(self.runner, cache)
        prompt, chunk = self.request.prompt, self.runner.prefill_chunk
        state_ND = None
        for start in range(0, len(prompt), chunk):
            if self.cancelled:
                return self.end("cancelled")
            state_ND = self.runner.prefill(cache, prompt[start : start + chunk])
            if self.chain is not None:
                self.chain.prefill(prompt, start, state_ND)
        assert state_ND is not None
        logits_A = self.runner.logits(state_ND[-1])
        token_id = draw_token(logits_A, prompt, [], self.request.settings, self._draws, self.request.usable)
        self._first = self._last = time.perf_counter()
        return self._piece(self._take([token_id], [0], logits_A[None]), 0)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def draw_draft(
        self, drafts: Sequence[Draft], logits: NDArray[np.float32], ids_V: NDArray[np.int64] | None = None
    ) -> Draft:
        """Draw the next draft from a module's logits (A), or from those of `ids_V` only (V)."""
        so_far = [*self.answer, *(draft.token_id for draft in drafts)]
        request = self.request
        among = None if ids_V is None else Among(ids_V, self.runner.model.config.vocab_size)
        return draw_draft(logits, request.prompt, so_far, request.settings, self._draws, request.usable, among)

    def verify(self, drafts: Sequence[Draft], logits_TA: NDArray[np.float32]) -> tuple[Verdict, Piece]:
        """Decide what stays of the drafts, given the logits after t_n and after each draft."""
        request = self.request
        verdict = verify(logits_TA, drafts, request.prompt, self.answer, request.settings, self._draws, request.usable)
        self._passes += 1
        self._last = time.perf_counter()
        first = len(self.answer)
        text = self._take(verdict.token_ids, [*range(1, verdict.accepted + 1), 0], logits_TA)
        # Drafts behind the end of the answer are in no answer.
        stayed = min(verdict.accepted, len(self.answer) - first)
        for counts, number in (self._proposed, len(drafts)), (self._stayed, stayed):
            counts += [0] * (len(drafts) - len(counts))
            counts[:number] = [count + 1 for count in counts[:number]]
        return verdict, self._piece(text, first)

    def _take(self, token_ids: Sequence[int], places: Sequence[int], logits_TA: NDArray[np.float32]) -> str:
        """Add tokens one by one until the answer ends; the rest is dropped. Returns the text that may be shown now."""
        settings, text = self.request.settings, ""
        for row, token_id in enumerate(token_ids):
            self.answer.append(token_id)
            self._drafted.append(places[row])
            if settings.logprobs is not None:
                self._logprobs.append(log_probability(logits_TA[row], token_id, settings.logprobs))
            if token_id in self.request.ends:
                self.finish_reason = "stop"
            else:
                text += self._shown.push(token_id)
                if self._shown.stopped is not None:
                    self.finish_reason = "stop"
                elif len(self.answer) == self.request.max_new_tokens:
                    self.finish_reason = "length"
            if self.finish_reason is not None:
                return text + self._shown.flush()
        return text

    def end(self, reason: FinishReason) -> Piece:
        """End between rounds; what was held back is text after all."""
        self.finish_reason = reason
        return self._piece(self._shown.flush(), len(self.answer))

    # --- what callers get ---------------------------------------------------------------------------------------------

    def _piece(self, text: str, first: int) -> Piece:
        """What was added since token `first` of the answer; the whole answer too, if it ended."""
        self._text.append(text)
        logprobs = None if self.request.settings.logprobs is None else tuple(self._logprobs)
        piece = Piece(text, tuple(self.answer[first:]), logprobs and logprobs[first:], tuple(self._drafted[first:]))
        if self.finish_reason is None:
            return piece
        answer = Answer(
            text="".join(self._text),
            token_ids=tuple(self.answer),
            finish_reason=self.finish_reason,
            logprobs=logprobs,
            drafted=tuple(self._drafted),
            seed=self.request.settings.seed,
            stats=Stats(
                prompt_tokens=len(self.request.prompt),
                new_tokens=len(self.answer),
                prefill_seconds=self._first - self._began,
                decode_seconds=self._last - self._first,
                passes=self._passes,
                drafted=tuple(self._proposed),
                accepted=tuple(self._stayed),
            ),
        )
        return dataclasses.replace(piece, answer=answer)
