"""Learning a byte-level BPE vocabulary from text with the `tokenizers` library.

The result is a standard `tokenizer.json`: the published V3 pretokenizer, the 256 bytes, and merges. The same texts give
the same file, whatever the number of threads.
"""

import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from cueva.errors import TextError
from cueva.text.special import BOS, HIDDEN, SPECIAL_TOKENS
from cueva.text.strings import pieces, utf8

SMALLEST_VOCABULARY: Final = 256 + len(SPECIAL_TOKENS)
"""The bytes and the special tokens: enough to write anything, one byte at a time."""

# The pretokenizer of the published V3 tokenizer.json, in its order; other programs know it by name ("deepseek-v3"). It
# suits code as it is: a run of spaces stays one piece, so that an indentation becomes one token, except for its last
# space, which goes with the word; and punctuation takes the line breaks that follow it.
_NUMBERS: Final = r"\p{N}{1,3}"
_CJK: Final = "[一-龥぀-ゟ゠-ヿ]+"
_WORDS: Final = "|".join(
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
        "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",
        " ?[\\p{P}\\p{S}]+[\r\n]*",
        "\\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

_BLOCK: Final = 1 << 16
"""Characters of the blocks among which a sample is drawn."""
_LONGEST_WORD: Final = 256
"""Characters. Longer runs are cut before learning: a merge rewrites every word it occurs in, however long."""
_READ_FACTOR: Final = 16
"""Reading stops after this many times the sample, or a data set of terabytes would never be done."""

_LONG_RUN: Final = re.compile(rf"(\S{{{_LONGEST_WORD}}}|\s{{{_LONGEST_WORD}}})")


def train_bpe(texts: Iterable[str], vocab_size: int, *, sample_bytes: int, min_frequency: int) -> str:
    """Learn a vocabulary and return it as the text of a tokenizer.json.

    Args:
        texts: read once, up to 16 times `sample_bytes`.
        vocab_size: entries in all, special tokens and the 256 bytes included.
        sample_bytes: how much text to learn from, in bytes of UTF-8. If there is more, blocks of 64 Ki characters are
            drawn by their hash, so the order of the documents plays no part.
        min_frequency: a pair seen less often than this is not merged.

    Raises:
        TextError: there is no text, or it supports fewer entries than asked for, or `vocab_size` is too small to hold
            every byte.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise TextError(
            f"a vocabulary of {vocab_size} entries is too small: "
            f"256 bytes and {len(SPECIAL_TOKENS)} special tokens need {SMALLEST_VOCABULARY}"
        )
    sample = _sample(texts, sample_bytes)
    if not sample:
        raise TextError("there is no text to learn a vocabulary from")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_NUMBERS), "isolated"),
            pre_tokenizers.Split(Regex(_CJK), "isolated"),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        # Sorted, because the library hands the bytes out in no fixed order.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner.train_from_iterator((word for block in sample for word in _short_words(block)), trainer)
    size = learner.get_vocab_size()
    if size < vocab_size:
        raise TextError(
            f"the text supports a vocabulary of {size} entries, but {vocab_size} were asked for: "
            f"no further pair occurs {min_frequency} times in the {sum(map(len, sample)):,} characters read",
            way_out=f"try a vocab_size of {size} or less, or more text",
        )
    bos = learner.token_to_id(BOS)
    learner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos)]
    )
    definition = json.loads(learner.to_str())

    for token in definition["added_tokens"]:
        token["special"] = token["content"] in HIDDEN
    return json.dumps(definition, ensure_ascii=False, indent=2)


# --- private ----------------------------------------------------------------------------------------------------------


def _sample(texts: Iterable[str], sample_bytes: int) -> list[str]:
    """Keep the blocks with the smallest hashes, as many as fit, and put them back in their order."""
    kept: list[tuple[int, int, str]] = []  # a heap with the largest hash on top: (minus hash, minus place, block)
    kept_bytes = read_bytes = place = 0
    for text in texts:
        for block in pieces(text, _BLOCK):
            data = utf8(block)
            if not data:
                continue
            priority = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
            heapq.heappush(kept, (-priority, -place, block))
            place += 1
            kept_bytes += len(data)
            read_bytes += len(data)
            while kept_bytes > sample_bytes and len(kept) > 1:
                kept_bytes -= len(utf8(heapq.heappop(kept)[2]))
        if read_bytes > _READ_FACTOR * sample_bytes:
            break
    return [block for _, _, block in sorted(kept, key=lambda item: -item[1])]


def _short_words(block: str) -> Iterator[str]:
    if _LONG_RUN.search(block) is None:
        yield block
    else:
        yield from (part for part in _LONG_RUN.split(block) if part)
