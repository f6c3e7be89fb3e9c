"""The engine: prompts in, answers out.

    engine = Engine(model, tokenizer)
    engine.generate(["def "], Sampling(max_new_tokens=64))[0].text
    for piece in engine.stream("def ", Sampling(temperature=0.7)): print(piece.text, end="")

Each call makes a `Batch` (`scheduler.py`); the engine keeps what outlives calls: the model, the cache budget, the
measured speeds, the model's defaults. `docs/generation.md` says how the parts fit together and what they guarantee.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import torch

from cueva.engine.answers import Answer, Piece
from cueva.engine.backends import Backend, chosen_backend, converted
from cueva.engine.cache import CachePool, bytes_per_token
from cueva.engine.draft_vocabulary import AskedVocabulary, DraftVocabulary
from cueva.engine.draws import fresh_seed
from cueva.engine.native import LiveModel, ModuleWeights, NativeModel, NativeRunner, PagedPool, weights_of
from cueva.engine.plan import DraftingReport, DraftPlan
from cueva.engine.requests import Defaults, Prompt, make_request, prompt_ids
from cueva.engine.runner import Runner
from cueva.engine.running import Cancel
from cueva.engine.scheduler import Batch
from cueva.engine.settings import Sampling
from cueva.engine.stops import Codec
from cueva.errors import RequestError
from cueva.kernels.native import default_threads
from cueva.model import CausalLM

log = logging.getLogger("cueva.engine")

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
        model: CausalLM | NativeModel,
        tokenizer: Codec | None = None,
        *,
        backend: Backend = "auto",
        weights: str | None = None,
        threads: int | None = None,
        cache_tokens: int | None = None,
        prefill_chunk: int | None = None,
        rows: int = 8,
        device: str = "auto",
        generation: Mapping[str, Any] | None = None,
        draft_vocabulary: AskedVocabulary = "auto",
    ):
        """Get ready, and check once that this machine computes rows independently (`runner.py`).

        Args:
            model: the model; it stays as it is. `cueva.Engine` also takes a path.
            tokenizer: makes text prompts, text answers and stop strings possible.
            backend: "native", the C++ kernels for the CPU, which keep a copy of the weights laid out for them; "torch",
                the definition of what is computed; "auto": native where it can serve.
            weights: "f32", "bf16", "fp8", "q8_0", "q4_0" or "q4_k": how the weights are held (`docs/performance.md`
                says what each costs in exactness); the last four are native only. None is the model's own dtype.
            threads: that compute. None: as many as this process may use; with "torch", what PyTorch has, and a number
                is set for the whole process.
            cache_tokens: positions of all running sequences together; None lets `rows` sequences be as long as the
                model allows. Memory is taken as sequences grow.
            prefill_chunk: rows of a prefill pass, fixed for the engine's life: another size may change the last bits of
                logits. None: 512 natively, 128 with "torch".
            rows: the most sequences that run at once; the others wait. With "torch" also the rows of a decoding pass.
            device: "auto" is where the model lies; another makes a copy there.
            generation: the model's `generation_config.json`: defaults for what a `Sampling` leaves open.
            draft_vocabulary: ids that drafts are chosen from (`draft_vocabulary.py`), which changes speed only: a
                number of ids (the most frequent ones), the ids, None for all, "auto" for what pays.

        Raises:
            RequestError: an option that means nothing.
        """
        if not isinstance(model, CausalLM | NativeModel):
            raise RequestError(
                f"an engine takes a model, but got {type(model).__name__}",
                way_out="try cueva.Engine, which loads one from a path",
            )
        for name, value in {"prefill_chunk": prefill_chunk, "rows": rows, "threads": threads}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} is {value!r}, but it must be a whole number of at least 1")
        self.tokenizer = tokenizer
        self.config = model.config
        self.defaults = Defaults.read(generation or {}, self.config, tokenizer)
        if cache_tokens is None:
            cache_tokens = rows * self.config.max_position_embeddings
        self.model = model
        self.runner: NativeRunner | Runner
        self.pool: PagedPool | CachePool
        self._live: LiveModel | None = None
        if isinstance(model, NativeModel) or chosen_backend(model, backend, weights, device) == "native":
            threads = threads or default_threads()
            if isinstance(model, CausalLM):
                asked = weights or weights_of(model.lm_head.weight.dtype) or "f32"
                self._live = LiveModel(ModuleWeights(model), asked, threads=threads)
                model = self._live.model
            self.runner = NativeRunner(model, threads=threads, prefill_chunk=prefill_chunk or 512)
            self.pool = PagedPool(self.config, cache_tokens, dtype=model.cache_dtype, sequences=rows)
        else:
            if threads is not None:
                torch.set_num_threads(threads)
            self.model = converted(model, weights, device)
            self.runner = Runner(self.model, rows=rows, prefill_chunk=prefill_chunk or 128)
            self.pool = CachePool(self.config, cache_tokens, dtype=self.runner.dtype, device=self.runner.device)
        self._most_active = rows
        self._plan = DraftPlan(self.runner, DraftVocabulary(draft_vocabulary, self.config, self.defaults.usable))
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
        self._begin()
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
        self._begin()

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
        if isinstance(self.runner, NativeRunner):
            self._begin()
            with self._turn:
                return self.runner.log_probabilities(ids)
        assert isinstance(self.model, CausalLM)
        ids_T = torch.tensor(ids, device=self.runner.device)
        with self._turn:
            hidden_TD = self.model.states(ids_T[None], mtp=False).hidden_BTD[0]
            found: list[float] = []
            for start in range(0, len(ids) - 1, SCORED_ROWS):
                target_T = ids_T[start + 1 : start + 1 + SCORED_ROWS]
                logits_TA = self.model.logits(hidden_TD[start : start + len(target_T)])
                found += logits_TA.log_softmax(-1).gather(-1, target_T[:, None])[:, 0].tolist()
        return found

    def drafting(self) -> DraftingReport:
        """What this engine has learned about drafting: costs, acceptance, what was chosen. `print` shows it."""
        return self._plan.report()

    def describe_sampling(self) -> str:
        """Say which sampling defaults hold and where they come from, in one line."""
        return self.defaults.describe()

    def _begin(self) -> None:
        """Before a request: read the weights again if they changed, and say once which defaults hold."""
        if self._live is not None and isinstance(self.runner, NativeRunner):
            with self._turn:
                self.runner.follow(self._live.current())
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
        return bytes_per_token(self.config, self.runner.cache_dtype)


def _for_each(given: Any, count: int, what: str, kind: type | None) -> list[Any]:
    """One value for each prompt: the same for all, or a list of as many."""
    if given is None or (callable(given) if kind is None else isinstance(given, kind)):
        return [given] * count
    if len(given) != count:
        raise RequestError(f"there are {count} prompts but {len(given)} {what}; give one for all, or one for each")
    return list(given)
