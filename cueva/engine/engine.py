"""The engine: prompts in, answers out.

    engine = Engine(model, tokenizer)
    engine.generate(["def "], Sampling(max_new_tokens=64))[0].text
    for piece in engine.stream("def ", Sampling(temperature=0.7)): print(piece.text, end="")

Each call makes a `Batch` (`scheduler.py`); the engine keeps what outlives calls: the model, the cache budget, the
measured speeds, the model's defaults. `docs/generation.md` says how the parts fit together and what they guarantee.
"""

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import torch

from cueva.engine.answers import Answer, Piece
from cueva.engine.cache import CachePool, bytes_per_token
from cueva.engine.draws import fresh_seed
from cueva.engine.requests import Defaults, Prompt, make_request, prompt_ids
from cueva.engine.runner import Runner
from cueva.engine.running import Cancel
from cueva.engine.scheduler import Batch, DraftPlan
from cueva.engine.settings import Sampling
from cueva.engine.stops import Codec
from cueva.errors import RequestError, nearest
from cueva.model import CausalLM

log = logging.getLogger("cueva.engine")

DTYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16}
NATIVE: Final = ("fp8", "q8_0", "q4_0", "q4_k")
"""Weight formats that the native engine will bring."""
SCORED_ROWS: Final = 256
"""Rows whose logits `score` holds at once."""

Draft = int | Literal["auto"]


class Engine:
    """Generates text with one model. Greedy text is the same with and without drafting, alone and in company.

    Attributes:
        model: in the engine's dtype and device; the one given if those are its own.
        tokenizer: None for token ids only.
        pool: the cache budget.
        runner: runs the passes and counts them.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Codec | None = None,
        *,
        weights: str | None = None,
        threads: int | None = None,
        cache_tokens: int | None = None,
        prefill_chunk: int = 128,
        rows: int = 8,
        device: str = "auto",
        generation: Mapping[str, Any] | None = None,
    ):
        """Get ready, and check once that this machine computes rows independently (`runner.py`).

        Args:
            model: the model; it stays as it is. `cueva.Engine` also takes a path.
            tokenizer: makes text prompts, text answers and stop strings possible.
            weights: "f32" or "bf16": what to compute in. None is the model's own; another makes a converted copy.
            threads: of PyTorch, for the whole process; None leaves them.
            cache_tokens: positions of all running sequences together; None lets `rows` sequences be as long as the
                model allows. Memory is taken as sequences grow.
            prefill_chunk: rows of a prefill pass. Fixed for the engine's life, as is `rows`: another size may change
                the last bits of logits.
            rows: of a decoding pass, and the most sequences that run at once; the others wait.
            device: "auto" is where the model lies; another makes a copy there.
            generation: the model's `generation_config.json`: defaults for what a `Sampling` leaves open.

        Raises:
            RequestError: an option that means nothing.
        """
        if not isinstance(model, CausalLM):
            raise RequestError(
                f"an engine takes a model, but got {type(model).__name__}",
                way_out="try cueva.Engine, which loads one from a path",
            )
        for name, value in {"prefill_chunk": prefill_chunk, "rows": rows, "threads": threads}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} is {value!r}, but it must be a whole number of at least 1")
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = _converted(model, weights, device)
        self.tokenizer = tokenizer
        self.config = model.config
        self.defaults = Defaults.read(generation or {}, self.config, tokenizer)
        self.runner = Runner(self.model, rows=rows, prefill_chunk=prefill_chunk)
        if cache_tokens is None:
            cache_tokens = rows * self.config.max_position_embeddings
        self.pool = CachePool(self.config, cache_tokens, dtype=self.runner.dtype, device=self.runner.device)
        self._most_active = rows
        self._plan = DraftPlan(self.runner)
        self._described = False
        # Passes of several threads take turns; between them, other calls may go on.
        self._turn = threading.RLock()

    # --- generating ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        draft: Draft = "auto",
        *,
        cancel: Cancel | Sequence[Cancel | None] | None = None,
        on_piece: Callable[[int, Piece], None] | None = None,
    ) -> list[Answer]:
        """Answer many prompts at once. No answer depends on the others.

        Args:
            prompts: texts or lists of token ids; a text gets the begin token, ids are taken as they are.
            sampling: for all, or one for each.
            draft: tokens to draft per round with the model's MTP modules: a number, or "auto" for as many as pay.
            cancel: asked between passes, for all or one for each; saying yes ends that request as "cancelled".
            on_piece: called with (number of the prompt, piece) as answers grow.

        Returns:
            The answers, in the order of the prompts.

        Raises:
            RequestError: a prompt or request that does not fit, checked for all before any runs.
        """
        if isinstance(prompts, str):
            raise RequestError("prompts is one text, but generate takes a list of them", way_out="try [prompt]")
        samplings = _for_each(sampling, len(prompts), "samplings", Sampling)
        cancels = _for_each(cancel, len(prompts), "cancel functions", None)
        requests = [
            make_request(prompt, one or Sampling(), draft, self.defaults, self.pool.tokens, fresh_seed(), asked)
            for prompt, one, asked in zip(prompts, samplings, cancels, strict=True)
        ]
        self._describe_once()
        answers: dict[int, Answer] = {}
        with Batch(requests, self.runner, self.pool, self._plan, self._most_active) as batch:
            while batch.busy:
                with self._turn:
                    advanced = batch.advance()
                for number, piece in advanced:
                    if piece.answer is not None:
                        answers[number] = piece.answer
                    if on_piece is not None:
                        on_piece(number, piece)
        return [answers[number] for number in range(len(requests))]

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        draft: Draft = "auto",
        *,
        cancel: Cancel | None = None,
    ) -> Iterator[Piece]:
        """Answer one prompt piece by piece; the last piece carries the `Answer`. Closing the iterator ends the request.

        Arguments and errors are those of `generate`; errors come at the call, not at the first piece.
        """
        defaults, tokens = self.defaults, self.pool.tokens
        request = make_request(prompt, sampling or Sampling(), draft, defaults, tokens, fresh_seed(), cancel)
        self._describe_once()

        def pieces() -> Iterator[Piece]:
            with Batch([request], self.runner, self.pool, self._plan, self._most_active) as batch:
                while batch.busy:
                    with self._turn:
                        advanced = batch.advance()
                    for _, piece in advanced:
                        yield piece

        return pieces()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling | None = None,
        draft: Draft = "auto",
        *,
        cancel: Cancel | None = None,
        **template: Any,
    ) -> Answer:
        """Answer a conversation: mappings with `role` and `content`, as the tokenizer's chat template wants them.

        Args:
            messages: the conversation so far.
            sampling: as for `generate`, as are `draft` and `cancel`.
            draft: see `generate`.
            cancel: see `generate`.
            **template: for the tokenizer's `encode_chat`: `tools`, or variables that the template reads.

        Raises:
            RequestError: no tokenizer, or what `generate` refuses.
            TextError: no chat template, or it refuses the conversation.
        """
        return self.generate([self.chat_prompt(messages, **template)], sampling, draft, cancel=cancel)[0]

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling | None = None,
        draft: Draft = "auto",
        *,
        cancel: Cancel | None = None,
        **template: Any,
    ) -> Iterator[Piece]:
        """Answer a conversation piece by piece; see `chat` and `stream`."""
        return self.stream(self.chat_prompt(messages, **template), sampling, draft, cancel=cancel)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        """The token ids of a conversation, ready for the answer."""
        if self.tokenizer is None:
            raise RequestError("this engine has no tokenizer, so it cannot read a conversation")
        return self.tokenizer.encode_chat(messages, **template)

    # --- without generating -------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, text: Prompt) -> list[float]:
        """Log-probabilities of a given text: entry i is that of token i + 1 after the tokens before it.

        From one expanded pass over the whole text, in nats; one entry fewer than the text has tokens.

        Raises:
            RequestError: as for a prompt.
        """
        ids = prompt_ids(text, self.defaults)
        if len(ids) > self.config.max_position_embeddings:
            raise RequestError(
                f"the text has {len(ids)} tokens, but this model has {self.config.max_position_embeddings} positions",
                way_out="try a shorter text, or score it in parts",
            )
        ids_T = torch.tensor(ids, device=self.runner.device)
        with self._turn:
            hidden_TD = self.model.states(ids_T[None], mtp=False).hidden_BTD[0]
            found: list[float] = []
            for start in range(0, len(ids) - 1, SCORED_ROWS):
                target_T = ids_T[start + 1 : start + 1 + SCORED_ROWS]
                logits_TA = self.model.logits(hidden_TD[start : start + len(target_T)])
                found += logits_TA.log_softmax(-1).gather(-1, target_T[:, None])[:, 0].tolist()
        return found

    def describe_sampling(self) -> str:
        """Say which sampling defaults hold and where they come from, in one line."""
        return self.defaults.describe()

    def _describe_once(self) -> None:
        if not self._described:
            self._described = True
            log.info("%s", self.describe_sampling())
            if self.defaults.unread:
                log.warning(
                    "generation_config.json asks for what this engine does not do; it goes on without: %s",
                    ", ".join(self.defaults.unread),
                )

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory of one position in the main layers."""
        return bytes_per_token(self.config, self.runner.dtype)


def _for_each(given: Any, count: int, what: str, kind: type | None) -> list[Any]:
    """One value for each prompt: the same for all, or a list of as many."""
    if given is None or (callable(given) if kind is None else isinstance(given, kind)):
        return [given] * count
    if len(given) != count:
        raise RequestError(f"there are {count} prompts but {len(given)} {what}; give one for all, or one for each")
    return list(given)


def _converted(model: CausalLM, weights: str | None, device: str) -> CausalLM:
    """The model itself if it is as wanted, else a copy that is."""
    if weights in NATIVE:
        raise RequestError(
            f"weights={weights!r} comes with the native engine; this one computes in plain PyTorch",
            way_out="try weights='bf16' or weights='f32'",
        )
    if weights is not None and weights not in DTYPES:
        raise RequestError(
            f"there is no weights={weights!r}{nearest(weights, [*DTYPES, *NATIVE])}; 'f32' or 'bf16' fit"
        )
    own = model.lm_head.weight
    dtype = own.dtype if weights is None else DTYPES[weights]
    try:
        place = own.device if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise RequestError(f"there is no device {device!r}; 'auto', 'cpu' or 'cuda' fit") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"device {device!r} was asked for, but PyTorch finds no CUDA device", way_out="try device='cpu'"
        )
    if dtype == own.dtype and place.type == own.device.type and place.index in (None, own.device.index):
        return model
    return copy.deepcopy(model).to(device=place, dtype=dtype)
