r"""Text to token ids and back, with a vocabulary of ours or anybody's `tokenizer.json`.

    tokenizer = Tokenizer.train((document.text for document in documents(["python"])), vocab_size=4096)
    tokenizer.save("model")
    Tokenizer.load("model").decode(tokenizer.encode("def f():\n    return 1\n"))

Ordinary text never becomes a special token, however it is spelled: only `special=True` or a chat template writes those.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import tokenizers

from cueva.errors import TextError
from cueva.files import atomic_write
from cueva.text import chat, library
from cueva.text.decoding import Decoding, StreamDecoder
from cueva.text.default_template import DEFAULT_TEMPLATE
from cueva.text.published import DEFAULT_TEMPLATE_NAME, TOOL_TEMPLATE_NAME, Settings, read_settings
from cueva.text.special import BOS, EOS, PAD, Control, controls
from cueva.text.training import train_bpe

_NO_LIMIT: Final = int(1e30)
"""What `transformers` writes for `model_max_length` when there is no limit."""


class Tokenizer:
    """A vocabulary, and the tokens that begin and end a text.

    Use `load` or `train`.

    Args:
        definition: the text of a tokenizer.json; kept as it is and written back by `save`.
        settings: what the files beside it say.

    Raises:
        TextError: the definition is not one that the `tokenizers` library reads, or its decoder is of an unknown kind,
            or a token that should begin or end a text is not in the vocabulary.
    """

    def __init__(self, definition: str, settings: Settings):
        self._text = definition
        self._settings = settings
        self._definition = library.parse(definition)
        self.control: Mapping[str, Control] = controls(self._definition["added_tokens"], settings.templates.values())
        """Tokens that ordinary text cannot become, by spelling."""
        self._plain = library.build(self._definition, ordinary=self.control)
        self._may_cut = library.may_cut(self._definition)
        self.size: int = max(self._plain.get_vocab().values(), default=-1) + 1
        """One more than the highest id: the length of the vocabulary. A model's own may be larger; mask the rest."""
        self._decoding = Decoding(self._definition, self._token_of)
        unknown = _unknown(self._definition["model"])
        self._forbidden = frozenset(token.id for token in self.control.values() if token.text != unknown)
        self.bos_id: int | None = next(iter(self._ids("bos", settings.bos)), None)
        self.eos_ids: tuple[int, ...] = self._ids("eos", settings.eos)
        """Every token that ends a text; the first is the one that training writes."""
        self.pad_id: int | None = next(iter(self._ids("pad", settings.pad)), None)
        self.adds_bos: bool = self._adds_bos()
        """Whether a text for this model begins with `bos_id`."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Open a tokenizer.json, or a folder with one and its companions, as published.

        Raises:
            TextError: there is none, or it cannot be read.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.json"
        if not file.is_file():
            others = [
                name for name in ("tokenizer.model", "tiktoken.model", "vocab.json") if (file.parent / name).exists()
            ]
            raise TextError(
                f"there is no {file}",
                way_out=f"try converting {others[0]} to a tokenizer.json with transformers first" if others else None,
            )
        try:
            definition = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"cannot read {file}: {error}") from error
        try:
            return cls(definition, read_settings(file.parent))
        except TextError as error:
            raise TextError(f"{file}: {error.message}", way_out=error.way_out) from error

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        sample_bytes: int = 50_000_000,
        min_frequency: int = 2,
        chat_template: str | None = None,
    ) -> Self:
        """Learn a byte-level BPE vocabulary in the shape of DeepSeek-V3's.

        Args:
            texts: read once and in full, except that reading stops at 16 times `sample_bytes`.
            vocab_size: entries in all: special tokens, the 256 bytes, and what is learned.
            sample_bytes: bytes of text to learn from at most; 50 MB take about half a minute on two cores.
            min_frequency: a pair of tokens seen less often is not joined.
            chat_template: the default is `cueva.text.DEFAULT_TEMPLATE`.

        Raises:
            TextError: the text supports fewer entries than `vocab_size`; the message says how many.
        """
        definition = train_bpe(texts, vocab_size, sample_bytes=sample_bytes, min_frequency=min_frequency)
        config = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False}
        template = DEFAULT_TEMPLATE if chat_template is None else chat_template
        templates = {DEFAULT_TEMPLATE_NAME: template}
        return cls(definition, Settings(bos=BOS, eos=EOS, pad=PAD, templates=templates, config=config))

    def save(self, folder: str | os.PathLike[str], *, model_max_length: int | None = None) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` opens.

        Args:
            folder: made if absent.
            model_max_length: how many positions the model has; by default what the tokenizer came with, or no limit.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        config = dict(self._settings.config)
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        for name, token in (("bos", self._settings.bos), ("eos", self._settings.eos), ("pad", self._settings.pad)):
            if token is not None:
                config.setdefault(f"{name}_token", token)
        config.setdefault("model_max_length", _NO_LIMIT)
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        templates = self._settings.templates
        if list(templates) == [DEFAULT_TEMPLATE_NAME]:
            config["chat_template"] = templates[DEFAULT_TEMPLATE_NAME]
        elif templates:
            config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        atomic_write(Path(folder) / "tokenizer.json", self._text)
        atomic_write(Path(folder) / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")

    def __len__(self) -> int:
        return self.size

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document in training."""
        return self.eos_ids[0] if self.eos_ids else None

    @property
    def bos_token(self) -> str:
        """How the begin token is spelled; empty if there is none."""
        return self._spelling(self.bos_id)

    @property
    def eos_token(self) -> str:
        """How the end token is spelled; empty if there is none."""
        return self._spelling(self.eos_id)

    @property
    def chat_template(self) -> str | None:
        """The template for conversations, None if the tokenizer came without."""
        return self._settings.templates.get(DEFAULT_TEMPLATE_NAME)

    @property
    def tool_template(self) -> str | None:
        """The template for conversations with tools: a separate one in some directories, else `chat_template`."""
        return self._settings.templates.get(TOOL_TEMPLATE_NAME, self.chat_template)

    @property
    def fingerprint(self) -> str:
        """A sha256 of everything that decides which ids a text gets, however the file is laid out."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        content = {**self._definition, "truncation": None, "padding": None, "bos": self.bos_id, "eos": self.eos_id}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, *, bos: bool = False, special: bool = False, inside: bool = False) -> list[int]:
        """Turn text into ids.

        Args:
            text: any string of whole characters.
            bos: put the begin token first, if the tokenizer has one.
            special: let the spelling of a special token become that token. Only for text that you wrote yourself.
            inside: the text goes on after something else. It matters for tokenizers that put a space before the first
                word of a text.

        Raises:
            TextError: the text holds half of a surrogate pair.
        """
        if special:
            ids = library.encode(self._marked, [text], cut=self._may_cut)[0]
        else:
            ids = self._encode(self._inside if inside else self._plain, [text])[0]
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_batch(self, texts: Sequence[str], *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """Turn many texts into ids, on all cores; `bos` and `eos` put those tokens around each, where there are any.

        Raises:
            TextError: a text holds half of a surrogate pair.
        """
        before = [self.bos_id] if bos and self.bos_id is not None else []
        after = [self.eos_id] if eos and self.eos_id is not None else []
        return [before + ids + after for ids in self._encode(self._plain, texts)]

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Turn a conversation into ids with the tokenizer's chat template; see `cueva.text.chat.encode_chat`.

        Raises:
            TextError: there is no template, or it refuses the conversation.
        """
        template = self.tool_template if tools else self.chat_template
        if template is None:
            raise TextError("this tokenizer has no chat template", way_out="try plain text, or a model made for chat")
        return chat.encode_chat(
            self, messages, template, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Turn ids into text. Ids without a token give nothing; bytes that are no characters give U+FFFD.

        Args:
            ids: any whole numbers.
            special: show the tokens that the tokenizer marks as special.
        """
        return self._decoding.text(ids, special=special)

    def stream(self, *, after: Iterable[int] = (), special: bool = False) -> StreamDecoder:
        """Make a decoder that takes one token at a time; `after` are the ids whose text is already shown."""
        return StreamDecoder(self._decoding, special=special, after=after)

    def token_bytes(self, token: int) -> bytes:
        """Return what a token writes in the middle of a text: special ones their spelling, unknown ids nothing."""
        return self._decoding.bytes_of(token)

    def special_id(self, text: str) -> int | None:
        """Return the id of the special token that is spelled so, None if there is none."""
        found = self.control.get(text)
        return None if found is None else found.id

    # --- private ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        return library.build(self._definition)

    @functools.cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        return library.build(self._definition, ordinary=self.control, inside=True)

    def _encode(self, engine: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        """Encode ordinary text. Guarded twice: the library matches no control token, and the model may make none."""
        encoded = library.encode(engine, texts, cut=self._may_cut)
        if not all(self._forbidden.isdisjoint(ids) for ids in encoded):
            raise TextError("this tokenizer's model makes special tokens of ordinary text, which cannot be prevented")
        return encoded

    def _ids(self, name: str, spelling: str | None) -> tuple[int, ...]:
        """Find a token by its spelling, then by the ids that other files give."""
        found = None if spelling is None else self._plain.token_to_id(spelling)
        ids = self._settings.ids.get(name, ())
        if spelling is not None and found is None and not ids and name != "pad":
            raise TextError(f"the {name} token {spelling!r} is not in the vocabulary")
        return tuple(dict.fromkeys(([] if found is None else [found]) + list(ids)))

    def _adds_bos(self) -> bool:
        stated = self._settings.config.get("add_bos_token")
        if stated is not None:
            return bool(stated) and self.bos_id is not None
        return self.bos_id is not None and self._plain.encode("").ids[:1] == [self.bos_id]

    def _token_of(self, token: int) -> str | None:
        # The library takes no number that is negative or larger than 32 bits.
        return self._plain.id_to_token(token) if 0 <= token < self.size else None

    def _spelling(self, token: int | None) -> str:
        return "" if token is None else self._token_of(token) or ""


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token for text that a vocabulary cannot write, which ordinary text may well become."""
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")
