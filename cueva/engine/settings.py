"""What a request may ask for, and how what it leaves open is decided.

`Sampling` is what a person writes; a field left at None means the model's `generation_config.json`, else the neutral
value. `Settings` is the same with every field decided.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cueva.errors import RequestError

DEFAULT_NEW_TOKENS: Final = 256
"""New tokens when neither the request nor the model's defaults say how many, if so many fit."""

_INACTIVE: Final[Mapping[str, Any]] = {
    "do_sample": True,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "early_stopping": False,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "use_cache": True,
    "max_length": 20,
}
"""Keys of a generation config that ask for nothing when they have this value (or null)."""
_READ: Final = {
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "do_sample",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "transformers_version",
    "_from_model_config",
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What one request asks of the tokens it gets.

    Raises:
        RequestError: a value that means nothing; the message names the field, the value and what would do.
    """

    max_new_tokens: int | None = None
    """At most so many new tokens; without a default of the model, 256 or what the context leaves."""
    temperature: float | None = None
    """Divides the logits; 0 is greedy: always the likeliest token, ties to the lowest id."""
    top_k: int | None = None
    """Keep the k likeliest tokens (ties to the lowest ids); 0 keeps all."""
    top_p: float | None = None
    """Keep the likeliest tokens until their probabilities reach this sum, at least one; 1 keeps all."""
    min_p: float | None = None
    """Keep tokens at least this many times as likely as the likeliest; 0 keeps all."""
    repetition_penalty: float | None = None
    """Divides positive and multiplies negative logits of every token that occurred, the prompt's included."""
    presence_penalty: float | None = None
    """Subtracted once from the logit of every token of the answer so far, -2 to 2."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit as often as the answer holds it, -2 to 2."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these token ids."""
    seed: int | None = None
    """Decides every random choice of this request; None draws a fresh one, which the answer reports."""
    stop: str | Sequence[str] | None = None
    """End before the first of these strings would appear in the text."""
    stop_token_ids: Sequence[int] | None = None
    """End at one of these tokens, as at an end token."""
    ignore_eos: bool = False
    """Go on after an end token of the model."""
    logprobs: int | None = None
    """Report the log-probability of each token under the model's own distribution, with this many alternatives."""

    def __post_init__(self) -> None:
        _whole(self, "max_new_tokens", 1)
        _whole(self, "top_k", 0)
        _whole(self, "seed", 0, 2**64 - 1)
        _whole(self, "logprobs", 0)
        _number(self, "temperature", 0.0, math.inf)
        _number(self, "top_p", 0.0, 1.0, above=True)
        _number(self, "min_p", 0.0, 1.0)
        _number(self, "repetition_penalty", 0.0, math.inf, above=True)
        _number(self, "presence_penalty", -2.0, 2.0)
        _number(self, "frequency_penalty", -2.0, 2.0)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"ignore_eos is {self.ignore_eos!r}, but it is True or False")
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Sequence | frozenset | set):
                raise RequestError(f"{name} is {value!r}, but it must be a list")
        for stop in [self.stop] if isinstance(self.stop, str) else self.stop or ():
            if not isinstance(stop, str) or not stop:
                raise RequestError(f"stop holds {stop!r}, but a stop string is a text of at least one character")
        for token_id in self.stop_token_ids or ():
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                raise RequestError(f"stop_token_ids holds {token_id!r}, but a token id is a whole number")
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {self.logit_bias!r}, but it maps token ids to numbers")
        for token_id, bias in (self.logit_bias or {}).items():
            if not isinstance(token_id, int) or not isinstance(bias, int | float) or not math.isfinite(bias):
                raise RequestError(
                    f"logit_bias has {token_id!r}: {bias!r}, but it maps token ids to finite numbers",
                    way_out="try -100 to forbid a token",
                )


def _whole(sampling: Sampling, name: str, least: int, most: int | None = None) -> None:
    value = getattr(sampling, name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise RequestError(f"{name} is {value!r}, but it must be a whole number, {limits}")


def _number(sampling: Sampling, name: str, least: float, most: float, *, above: bool = False) -> None:
    value = getattr(sampling, name)
    if value is None:
        return
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value > most or value < least or (above and value == least):
        low = f"above {least:g}" if above else f"from {least:g}"
        raise RequestError(
            f"{name} is {value!r}, but it must be a number {low}{'' if most == math.inf else f' to {most:g}'}"
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A `Sampling` with every field decided; the fields mean the same."""

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether no random choice is made."""
        return self.temperature == 0

    @property
    def moves_logits(self) -> bool:
        """Whether penalties or a bias change logits before anything is chosen."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)

    def describe(self) -> str:
        """The settings that shape the distribution, in one line."""
        if self.greedy:
            words = ["greedy (temperature 0)"]
        else:
            words = [f"temperature {self.temperature:g}"]
            words += [f"top-k {self.top_k}"] if self.top_k else []
            words += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
            words += [f"min-p {self.min_p:g}"] if self.min_p else []
        if self.repetition_penalty != 1:
            words.append(f"repetition penalty {self.repetition_penalty:g}")
        if self.max_new_tokens is not None:
            words.append(f"at most {self.max_new_tokens} new tokens")
        return ", ".join(words)


def defaults_from(generation: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Read the sampling defaults out of a `generation_config.json`.

    `do_sample: false` means greedy. A file without `do_sample` that gives a temperature samples with it (`transformers`
    would be greedy and warn). What the file leaves out is neutral: in particular there is no top-k of 50.

    Returns:
        The defaults, and the keys that ask for something this engine does not do, which a caller should say.

    Raises:
        RequestError: a value that means nothing.
    """
    given = {f.name: generation[f.name] for f in dataclasses.fields(Settings) if generation.get(f.name) is not None}
    given = {name: value for name, value in given.items() if name in _READ}
    checked = Sampling(**given)
    values = {name: getattr(checked, name) for name in given}
    if generation.get("do_sample") is False:
        values["temperature"] = 0.0
    unread = [
        key
        for key, value in generation.items()
        if key not in _READ and value is not None and not (key in _INACTIVE and value == _INACTIVE[key])
    ]
    return Settings(**values), unread


def settle(sampling: Sampling, defaults: Settings, seed: int) -> Settings:
    """Decide every field: what the request says, else the model's default. `seed` is used if the request has none."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        asked = getattr(sampling, field.name)
        values[field.name] = getattr(defaults, field.name) if asked is None else asked
    values["seed"] = seed if sampling.seed is None else sampling.seed
    values["stop"] = (sampling.stop,) if isinstance(sampling.stop, str) else tuple(sampling.stop or ())
    values["stop_token_ids"] = frozenset(sampling.stop_token_ids or ())
    return Settings(**values)
