"""The figures at the head of a report, each with the sentence that says what it means.

Words for people: `share(0.714)` is "71.4%", `counted(10_412_800)` is "10.4M". A figure that a run does not have (yet)
keeps its place and says why.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cueva.config import ModelConfig
from cueva.study.records import RunRecords, column, columns, number

LAST_STEPS: Final = 50
"""Steps over which the worst MaxVio and the speed at the end are taken."""
BF16_BYTES: Final = 2
ABSENT: Final = "–"


@dataclass(frozen=True)
class Figure:
    """One figure of the summary: what it is called, its value in words, and what it means."""

    key: str
    label: str
    value: str
    meaning: str


def summarise(records: RunRecords, config: ModelConfig | None) -> list[Figure]:
    """The eight figures of a report, in the order in which they are shown."""
    return [
        _held_out(records),
        _acceptance(records, config),
        _max_vio(records, config),
        _time(records),
        _tokens(records),
        *_shape_figures(config),
    ]


def _held_out(records: RunRecords) -> Figure:
    at, values = column(records.evals, "step"), column(records.evals, "bits_per_byte")
    at, values = at[np.isfinite(values)], values[np.isfinite(values)]
    meaning = "Bits the model needs on average for one byte of text it never trained on; 8 would be knowing nothing."
    if not len(values):
        return Figure("held_out", "held-out bits per byte", ABSENT, f"{meaning} Not measured yet.")
    best = int(values.argmin())
    if best < len(values) - 1:
        meaning += f" Best so far: {values[best]:.3f} at step {at[best]:,.0f}."
    else:
        meaning += f" Measured at step {at[-1]:,.0f}, the best so far."
    return Figure("held_out", "held-out bits per byte", f"{values[-1]:.3f}", meaning)


def _acceptance(records: RunRecords, config: ModelConfig | None) -> Figure:
    label = "drafts accepted"
    measured = [
        record for record in records.evals if isinstance(record.get("acceptance"), list) and record["acceptance"]
    ]
    if not measured:
        reason = "Not measured yet."
        if config is not None and not config.num_nextn_predict_layers:
            reason = "This model has no MTP modules, so it drafts nothing."
        return Figure(
            "acceptance", label, ABSENT, f"How often an MTP module guesses the model's own next token. {reason}"
        )
    depths = [number(value) for value in measured[-1]["acceptance"]]
    meaning = (
        "How often, on held-out text, the first MTP depth guesses exactly the token the model itself would choose: "
        f"up to {1 + depths[0]:.2f} tokens per pass instead of 1."
    )
    if len(depths) > 1:
        meaning += " Deeper: " + ", ".join(f"depth {k} {share(value)}" for k, value in enumerate(depths[1:], 2)) + "."
    return Figure("acceptance", label, share(depths[0]), meaning)


def _max_vio(records: RunRecords, config: ModelConfig | None) -> Figure:
    label = f"worst MaxVio, last {LAST_STEPS} steps"
    table = columns(records.steps[-LAST_STEPS:], "max_vio")
    known = np.where(np.isfinite(table), table, -np.inf)
    if not table.size or not np.isfinite(known).any():
        dense = config is not None and not config.gate_count
        reason = "This model has no expert layers." if dense else "Not logged yet."
        return Figure(
            "max_vio", label, ABSENT, f"How far the busiest expert was above an even share of the tokens. {reason}"
        )
    gate, _ = np.unravel_index(known.argmax(), known.shape)
    names = _gate_names(records, len(table))
    average = float(np.nanmean(table[gate]))
    meaning = (
        f"The busiest expert, in {names[gate]}, was once {share(float(known.max()))} above an even share of the tokens "
        f"(that gate's mean over these steps: {average:.2f}). 0 is perfect balance."
    )
    return Figure("max_vio", label, f"{known.max():.2f}", meaning)


def _gate_names(records: RunRecords, count: int) -> list[str]:
    for record in reversed(records.loads):
        names = record.get("gates")
        if isinstance(names, list) and len(names) == count:
            return [str(name) for name in names]
    return [f"gate {position + 1}" for position in range(count)]


def _tokens(records: RunRecords) -> Figure:
    tokens = column(records.steps, "tokens")
    if not len(tokens) or not np.isfinite(tokens).any():
        return Figure("tokens", "tokens seen", ABSENT, "No step is logged yet.")
    last = tokens[np.isfinite(tokens)][-1]
    meaning = f"{last:,.0f} tokens of training text in {records.steps[-1]['step']:,} steps"
    skipped = sum(record.get("skipped") is True for record in records.steps)
    if skipped:
        meaning += f"; {skipped:,} {'step' if skipped == 1 else 'steps'} skipped because a number was not finite"
    return Figure("tokens", "tokens seen", counted(last), meaning + ".")


def _time(records: RunRecords) -> Figure:
    seconds = column(records.steps, "seconds")
    if not len(seconds) or not np.isfinite(seconds).any():
        return Figure("time", "training time", ABSENT, "No step is logged yet.")
    meaning = "Time spent in training steps; when a run is resumed, the pause does not count."
    speed = column(records.steps[-LAST_STEPS:], "tokens_per_second")
    if np.isfinite(speed).any():
        meaning += f" {np.nanmedian(speed):,.0f} tokens/s at the end (median of {LAST_STEPS} steps)."
    return Figure("time", "training time", duration(seconds[np.isfinite(seconds)][-1]), meaning)


def _shape_figures(config: ModelConfig | None) -> Sequence[Figure]:
    if config is None:
        reason = "The run holds no model yet, so its shape is not known."
        return [
            Figure("parameters", "parameters", ABSENT, reason),
            Figure("active", "active per token", ABSENT, reason),
            Figure("cache", "cache per token", ABSENT, reason),
        ]
    total, active = config.parameters(), config.parameters(active=True)
    meaning = f"{total:,} weights of the main model, embedding and head included."
    if config.num_nextn_predict_layers:
        modules = config.num_nextn_predict_layers
        extra = modules * config.mtp_parameters()
        meaning += f" {'The MTP module adds' if modules == 1 else f'The {modules} MTP modules add'} {counted(extra)}."
    working = f"Weights that work on any one token: {share(active / total)} of all."
    if config.gate_count:
        working += f" Of {config.n_routed_experts} experts in a layer a token meets {config.num_experts_per_tok}"
        working += f" and the {config.n_shared_experts} shared." if config.n_shared_experts else "."
    small, large = cache_bytes(config), expanded_cache_bytes(config)
    cache = (
        f"{config.num_hidden_layers} layers keep one latent of {config.kv_lora_rank} and one rotary key of "
        f"{config.qk_rope_head_dim} numbers (bf16). Keys and values of every head would take {large / small:.1f} times "
        "as much."
    )
    return [
        Figure("parameters", "parameters", counted(total), meaning),
        Figure("active", "active per token", counted(active), working),
        Figure("cache", "cache per token", sized(small), cache),
    ]


def cache_bytes(config: ModelConfig) -> int:
    """Bytes cached for one position in bf16, main layers together."""
    return config.cache_values_per_token * BF16_BYTES


def expanded_cache_bytes(config: ModelConfig) -> int:
    """Bytes that the keys (N + R) and values (P) of every head would take instead, in bf16."""
    a_head = config.qk_head_dim + config.v_head_dim
    return config.num_hidden_layers * config.num_attention_heads * a_head * BF16_BYTES


def shape_sentence(config: ModelConfig) -> str:
    """The model in one line: layers, width, attention, experts, MTP."""
    dense = sum(not config.is_expert_layer(layer) for layer in range(config.num_hidden_layers))
    layers = f"{config.num_hidden_layers} layers"
    parts = [
        f"{layers} ({dense} dense, {config.num_hidden_layers - dense} with experts)" if config.gate_count else layers,
        f"width {config.hidden_size:,}",
        f"{config.num_attention_heads} heads over a latent of {config.kv_lora_rank}",
    ]
    if config.gate_count:
        shared = f" + {config.n_shared_experts} shared" if config.n_shared_experts else ""
        parts.append(f"{config.n_routed_experts} experts, {config.num_experts_per_tok} chosen{shared}")
    depths = config.num_nextn_predict_layers
    parts.append("no MTP" if not depths else "1 MTP module" if depths == 1 else f"{depths} MTP modules")
    parts.append(f"vocabulary {config.vocab_size:,}")
    return " · ".join(parts)


def cueva_version() -> str:
    """The version of the package this file belongs to (not of whatever else may be installed)."""
    return str(getattr(sys.modules["cueva"], "__version__", "of unknown version"))


# --- numbers in words -------------------------------------------------------------------------------------------------


def counted(value: float) -> str:
    """A count for reading: 950, 12.3k, 10.4M, 671B, 14.8T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            short = value / size
            return f"{short:.0f}{letter}" if short >= 99.95 else f"{short:.1f}{letter}"
    return f"{value:.0f}"


def sized(count: float) -> str:
    """Bytes for reading, in steps of 1024: 832 B, 1.6 KiB, 68.6 KiB, 12.3 GiB."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1023.95 or unit == "TiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def share(value: float) -> str:
    """A ratio as per cent: 0.714 is 71.4%."""
    return f"{100 * value:.1f}%" if abs(value) < 9.995 else f"{100 * value:,.0f}%"


def duration(seconds: float) -> str:
    """Time for reading: 8.4 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
