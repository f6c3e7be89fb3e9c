"""From what a caller wrote to a request that is known to fit: defaults, checks, and sentences for what is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cueva.config import ModelConfig
from cueva.engine.running import Cancel, Request
from cueva.engine.settings import DEFAULT_NEW_TOKENS, Sampling, Settings, defaults_from, settle
from cueva.engine.stops import Codec, NoText
from cueva.errors import RequestError

Prompt = str | Sequence[int]
"""A text, or token ids."""


@dataclass(frozen=True)
class Defaults:
    """What holds for every request of an engine."""

    config: ModelConfig
    tokenizer: Codec | None
    settings: Settings
    unread: tuple[str, ...]
    """Keys of the generation config that ask for something the engine does not do."""
    from_file: bool
    bos_id: int | None
    eos_ids: frozenset[int]
    usable: int
    """Ids below this may be generated."""

    @classmethod
    def read(cls, generation: Mapping[str, Any], config: ModelConfig, tokenizer: Codec | None) -> "Defaults":
        """Gather the defaults. End tokens are those of the generation config, else the tokenizer's, else the config's.

        Raises:
            RequestError: a value in `generation` that means nothing.
        """
        settings, unread = defaults_from(generation)
        eos = generation.get("eos_token_id")
        if eos is None:
            ends = tokenizer.eos_ids if tokenizer is not None and tokenizer.eos_ids else config.eos_token_ids
        else:
            ends = [eos] if isinstance(eos, int) else eos
        return cls(
            config=config,
            tokenizer=tokenizer,
            settings=settings,
            unread=tuple(unread),
            from_file=bool(generation),
            bos_id=config.bos_token_id if tokenizer is None else tokenizer.bos_id,
            eos_ids=frozenset(ends),
            usable=config.vocab_size if tokenizer is None else min(tokenizer.size, config.vocab_size),
        )

    def describe(self) -> str:
        """The sampling defaults and where they come from."""
        where = "generation_config.json" if self.from_file else "neutral: the model brings no defaults"
        return f"sampling defaults: {self.settings.describe()} ({where})"


def prompt_ids(prompt: Prompt, defaults: Defaults) -> list[int]:
    """Token ids of a prompt. An empty one begins from the begin token.

    Raises:
        RequestError: text without a tokenizer, ids outside the vocabulary, nothing to begin from.
    """
    tokenizer, vocabulary = defaults.tokenizer, defaults.config.vocab_size
    if isinstance(prompt, str):
        if tokenizer is None:
            raise RequestError("this engine has no tokenizer, so a prompt must be a list of token ids, not a text")
        ids = list(tokenizer.encode(prompt, bos=tokenizer.adds_bos))
    elif isinstance(prompt, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        ids = list(prompt)
    else:
        raise RequestError(f"a prompt is a text or a list of token ids, not {type(prompt).__name__}")
    for place, token_id in enumerate(ids):
        if not 0 <= token_id < vocabulary:
            raise RequestError(
                f"token {token_id} (place {place} of the prompt) lies outside this model's vocabulary of {vocabulary}",
                way_out="try the tokenizer that belongs to the model",
            )
    if not ids:
        if defaults.bos_id is None or not 0 <= defaults.bos_id < vocabulary:
            raise RequestError("the prompt is empty, and this model has no begin token to start from")
        ids = [defaults.bos_id]
    return ids


def make_request(
    prompt: Prompt,
    sampling: Sampling,
    draft: int | Literal["auto"],
    defaults: Defaults,
    cache_tokens: int,
    seed: int,
    cancel: Cancel | None,
) -> Request:
    """Check everything a request asks for, and decide what it leaves open.

    Args:
        prompt: a text or token ids.
        sampling: of this request.
        draft: tokens to draft per round, or "auto".
        defaults: of the engine.
        cache_tokens: the whole cache budget.
        seed: for a request that brings none.
        cancel: asked between passes.

    Raises:
        RequestError: it cannot be served; names what was asked and what would fit.
    """
    config, tokenizer = defaults.config, defaults.tokenizer
    settings = settle(sampling, defaults.settings, seed)
    ids = prompt_ids(prompt, defaults)
    _check_draft(draft, config)
    _check_tokens(settings, config)
    if settings.stop and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and this engine has none", way_out="try stop_token_ids")
    return Request(
        prompt=ids,
        settings=settings,
        max_new_tokens=_new_tokens(len(ids), sampling.max_new_tokens, settings, config, cache_tokens),
        draft=0 if config.num_nextn_predict_layers == 0 else draft,
        ends=settings.stop_token_ids | (frozenset() if settings.ignore_eos else defaults.eos_ids),
        usable=defaults.usable,
        decoder=NoText() if tokenizer is None else tokenizer.stream(after=ids),
        cancel=cancel,
    )


def _new_tokens(prompt: int, asked: int | None, settings: Settings, config: ModelConfig, cache_tokens: int) -> int:
    """How many new tokens: what the request asks for must fit; a default is lowered to what does."""
    positions = config.max_position_embeddings
    left = positions - prompt
    if left < 1:
        raise RequestError(
            f"the prompt has {prompt} tokens, but this model has {positions} positions, and an answer needs one",
            way_out="try a shorter prompt, or a model trained with a longer context",
        )
    if asked is not None:
        if asked > left:
            raise RequestError(
                f"{asked} new tokens do not fit: the prompt uses {prompt} of this model's {positions} positions and "
                f"leaves {left}",
                way_out=f"try --max-new-tokens {left}, or a model trained with a longer context",
            )
        if prompt + asked > cache_tokens:
            raise _no_cache(prompt, asked, cache_tokens)
        return asked
    wanted = min(settings.max_new_tokens or DEFAULT_NEW_TOKENS, left, cache_tokens - prompt)
    if wanted < 1:
        raise _no_cache(prompt, 1, cache_tokens)
    return wanted


def _no_cache(prompt: int, new: int, cache_tokens: int) -> RequestError:
    return RequestError(
        f"the request needs {prompt + new} positions of cache ({prompt} for the prompt, {new} for new tokens), but "
        f"this engine holds {cache_tokens} (cache_tokens)",
        way_out=f"try fewer new tokens, a shorter prompt, or an engine with cache_tokens={prompt + new}",
    )


def _check_draft(draft: object, config: ModelConfig) -> None:
    if draft == "auto":
        return
    if not isinstance(draft, int) or isinstance(draft, bool) or draft < 0:
        raise RequestError(f"draft is {draft!r}, but it is 'auto' or a number of tokens from 0")
    if draft and config.num_nextn_predict_layers == 0:
        raise RequestError(
            f"draft={draft} asks for drafted tokens, but this model has no MTP module to draft them",
            way_out="try draft=0, or draft='auto'",
        )


def _check_tokens(settings: Settings, config: ModelConfig) -> None:
    for name, ids in {"logit_bias": settings.logit_bias, "stop_token_ids": settings.stop_token_ids}.items():
        for token_id in ids:
            if not 0 <= token_id < config.vocab_size:
                raise RequestError(
                    f"{name} names token {token_id}, which lies outside this model's vocabulary of {config.vocab_size}"
                )
    if settings.logprobs is not None and settings.logprobs > config.vocab_size:
        raise RequestError(
            f"logprobs asks for {settings.logprobs} alternatives, but the vocabulary has {config.vocab_size} tokens"
        )
