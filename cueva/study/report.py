"""`report.html`: one self-contained page about a run, drawn from what the run wrote down.

The page needs no network and no server: style, script and data lie in the file, and its content policy forbids
everything else. The figures, tables and settings are plain HTML; the charts are drawn by the scripts in `web/`, read in
the order of `SCRIPTS` and joined at write time. `docs/report.md` says what each panel shows.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np

from cueva.config import ModelConfig
from cueva.errors import RunError
from cueva.files import atomic_write
from cueva.study.condense import condense
from cueva.study.records import Record, RunRecords, number, read_model_config, read_records, read_settings
from cueva.study.summary import Figure, cueva_version, duration, shape_sentence, share, summarise
from cueva.study.trace import Trace

SCRIPTS: Final = ("base.js", "chart.js", "reading.js", "experts.js", "samples.js", "trace.js", "main.js")
TABLE_ROWS: Final = 40
TRACE_CELLS: Final = 120_000
"""Choices (token, gate, slot) of the embedded trace; a longer one is cut to its last tokens."""


def write_report(run: Path, *, trace: Trace | None = None, out: Path | None = None) -> Path:
    """Write the report of a run, finished or still going.

    Args:
        run: the run directory; `metrics.jsonl`, `config.toml` and `model/config.json` are read where they exist.
        trace: a text to show token by token (see `make_trace`).
        out: where the page goes; None: `report.html` in the run directory. Replaced atomically.

    Returns:
        The path of the page.

    Raises:
        RunError: there is no such run directory, or its metrics cannot be read.
        CheckpointError: the page cannot be written.
    """
    run = Path(run)
    if out is not None and Path(out).is_dir():
        raise RunError(f"the report is one file, but {out} is a folder", way_out=f"try {Path(out) / 'report.html'}")
    records = read_records(run)
    text, settings = read_settings(run)
    config = read_model_config(run, settings)
    path = run / "report.html" if out is None else Path(out)
    page = render(run.resolve().name, records, text, settings, config, trace)
    atomic_write(path, page.encode("utf-8", "replace"))  # a log may hold half a surrogate pair, which UTF-8 cannot
    return path


def render(
    name: str,
    records: RunRecords,
    settings_text: str,
    settings: Mapping[str, Any],
    config: ModelConfig | None,
    trace: Trace | None,
) -> str:
    """The page as a string; everything that a run or a person wrote is escaped on its way in."""
    css, script = _asset("report.css"), "\n".join(["'use strict';", *map(_asset, SCRIPTS)])
    data = condense(records) | {
        "name": name,
        "trace": None if trace is None else trace_data(trace),
        "absent": absences(records, config),
    }
    return Template(_asset("report.html")).substitute(
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(css)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        version=cueva_version(),
        title=html.escape(f"{name} - cueva report"),
        name=html.escape(name),
        shape=html.escape(shape_sentence(config) if config else "The shape of the model is not known yet."),
        status=html.escape(status(records, settings)),
        figures="\n".join(map(_figure, summarise(records, config))),
        tables=evaluations(records) + events(records) + _settings(settings_text),
        footer=html.escape(_footer(records)),
        data=embedded(data),
        css=css,
        script=script,
    )


def embedded(data: Any) -> str:
    r"""JSON that cannot end the script element it lies in, whatever texts it holds.

    Inside `<script>` a browser looks for `</script` and `<!--` before anything else, so no `<` may remain; `\u003c` is
    the same character to JSON. Lone surrogates cannot be written as UTF-8, and are escaped like every other non-ASCII
    character.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (resources.files("cueva.study") / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- words ------------------------------------------------------------------------------------------------------------


def status(records: RunRecords, settings: Mapping[str, Any]) -> str:
    """How far the run is, in one sentence. It ends at `run.steps` or `run.minutes`, whichever comes first."""
    if not records.steps:
        return "No training step is logged yet."
    last, seconds = records.steps[-1]["step"], number(records.steps[-1].get("seconds"))
    spent = "" if np.isnan(seconds) else f" in {duration(seconds)}"
    length = settings.get("run")
    length = length if isinstance(length, Mapping) else {}
    steps, minutes = number(length.get("steps")), number(length.get("minutes"))
    part = np.nanmax([last / steps if steps > 0 else 0.0, seconds / (60 * minutes) if minutes > 0 else 0.0])
    if part >= 1:
        return f"Finished: {last:,} steps{spent}."
    if part == 0:
        return f"{last:,} steps{spent} so far."
    planned = [f"{steps:,.0f} steps"] if steps > 0 else []
    planned += [duration(60 * minutes)] if minutes > 0 else []
    return f"{last:,} steps{spent}, {share(part)} of {' or '.join(planned)}; still going, or stopped early."


def absences(records: RunRecords, config: ModelConfig | None) -> dict[str, str]:
    """The sentence that stands in place of a chart whose numbers are missing."""
    waiting = "Nothing is logged yet." if not records.steps else "This run logs nothing of the kind."
    dense = config is not None and config.gate_count == 0
    no_experts = "This model has no expert layers, so there is nothing to balance."
    mtp = config is None or config.num_nextn_predict_layers > 0
    return {
        "steps": "No training step is logged yet; the curve begins with the first.",
        "mtp": waiting if mtp else "This model has no MTP modules, so it predicts one token at a time.",
        "max_vio": no_experts if dense else waiting,
        "loads": no_experts
        if dense
        else "The load of each expert is not logged yet; it is written every so many steps, and drawn from then on.",
        "samples": "The run has not written a sample yet.",
        "trace": "No text was traced when this page was written.",
        "sequence": "This run has no sequence-wise balance loss.",
        "peak": "The share of the machine's peak was not measured in this run.",
    }


def _footer(records: RunRecords) -> str:
    counts = [
        (len(records.steps), "step"),
        (len(records.evals), "held-out measurement"),
        (len(records.samples), "sample"),
    ]
    parts = [f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in counts]
    notes = ""
    if records.repeated:
        notes += f" {records.repeated:,} steps were done again after an interruption; the later record is shown."
    if records.unusable:
        notes += f" {records.unusable:,} lines of metrics.jsonl could not be used."
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"Written by cueva {cueva_version()} on {now} from {', '.join(parts)}.{notes} metrics.jsonl holds every number."
    )


# --- static parts -----------------------------------------------------------------------------------------------------


def _figure(figure: Figure) -> str:
    value = html.escape(figure.value)
    return (
        f'<div class="figure" data-key="{figure.key}"><dt>{html.escape(figure.label)}</dt>'
        f'<dd class="value">{value}</dd><dd class="meaning">{html.escape(figure.meaning)}</dd></div>'
    )


def evaluations(records: RunRecords) -> str:
    """The held-out measurements as a table, readable without scripts."""
    evals = records.evals
    if not evals:
        return '<p class="empty">Nothing was measured on held-out text yet.</p>'
    shown = np.unique(np.linspace(0, len(evals) - 1, min(len(evals), TABLE_ROWS)).round().astype(int))
    depths = max((len(value) for record in evals if isinstance(value := record.get("acceptance"), list)), default=0)
    heads = ["step", "time", "bits per byte", "loss"]
    heads += [f"accepted, depth {depth + 1}" for depth in range(depths)]
    rows = [_evaluation(evals[index], depths) for index in shown]
    note = "" if len(shown) == len(evals) else f" ({len(shown)} of {len(evals):,})"
    return (
        f"<details open><summary>Held-out measurements{note}</summary>"
        f'<div class="scroll"><table class="data"><thead><tr>{_cells(heads, "th")}</tr></thead>'
        f"<tbody>{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</tbody></table></div></details>"
    )


def _evaluation(record: Record, depths: int) -> list[str]:
    accepted = record.get("acceptance")
    accepted = accepted if isinstance(accepted, list) else []
    row = [f"{record['step']:,}", _number(record.get("seconds"), duration)]
    row += [_number(record.get("bits_per_byte"), "{:.4f}".format), _number(record.get("loss"), "{:.4f}".format)]
    return row + [_number(accepted[depth] if depth < len(accepted) else None, share) for depth in range(depths)]


def _number(value: object, words: Any) -> str:
    value = number(value)
    return "–" if np.isnan(value) else words(value)


def _cells(values: Sequence[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)


def events(records: RunRecords) -> str:
    """What the run remarked, newest last, at most `TABLE_ROWS` of it."""
    said = [(record["step"], text) for record in records.events if isinstance(text := record.get("text"), str)]
    if not said:
        return ""
    rows = "".join(
        f'<tr><td>{step:,}</td><td class="text">{html.escape(text[:500])}</td></tr>'
        for step, text in said[-TABLE_ROWS:]
    )
    note = "" if len(said) <= TABLE_ROWS else f" (the last {TABLE_ROWS} of {len(said):,})"
    return (
        f"<details><summary>What happened{note}</summary>"
        f'<div class="scroll"><table class="data"><thead><tr><th>step</th><th class="text">event</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _settings(text: str) -> str:
    if not text.strip():
        return ""
    return f'<details><summary>config.toml</summary><pre class="settings">{html.escape(text[:60_000])}</pre></details>'


# --- the trace --------------------------------------------------------------------------------------------------------


def trace_data(trace: Trace) -> dict[str, Any]:
    """A trace as the page embeds it: tokens as objects; experts and weights as base64 uint16 [gate][token][slot].

    Weights count in `unit`, a 50,000th of the heaviest. Expert 65,535 marks an empty slot.
    """
    slots = max((len(choice) for rows in trace.experts for choice in rows), default=0)
    kept = max(1, TRACE_CELLS // max(1, slots * len(trace.gates)))
    first = max(0, len(trace.tokens) - min(kept, 4000))
    tokens = trace.tokens[first:]
    expert = np.full((len(trace.gates), len(tokens), slots), 65535, dtype="<u2")
    weight = np.zeros(expert.shape)
    for gate, rows in enumerate(trace.experts):
        for position, choice in enumerate(rows[first:]):
            expert[gate, position, : len(choice)] = choice
            weight[gate, position, : len(choice)] = trace.weights[gate][first + position]
    written = sum(not token.prompt for token in trace.tokens)
    unit = max(float(weight.max(initial=0.0)), 1e-9) / 50_000
    return {
        "tokens": [
            {
                "id": token.id,
                "text": token.text,
                "p": None if token.logprob is None else float(f"{np.exp(token.logprob):.4g}"),
                "drafted": token.drafted,
                "prompt": token.prompt,
            }
            for token in tokens
        ],
        "cut": first > 0,
        "proposed": list(trace.proposed),
        "accepted": list(trace.accepted),
        "tokens_per_pass": (written - 1) / trace.passes if trace.passes else None,
        "gates": list(trace.gates) if slots else [],
        "slots": slots,
        "expert": base64.b64encode(expert.tobytes()).decode(),
        "weight": base64.b64encode(np.round(weight / unit).astype("<u2").tobytes()).decode(),
        "unit": unit,
    }
