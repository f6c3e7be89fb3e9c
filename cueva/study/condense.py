"""From the lines of a run of any length to the few numbers a page can draw, with nothing made up.

A curve keeps at most `POINTS` points. Up to that every step is shown; beyond it neighbouring steps share a point that
keeps their mean, their lowest and their highest value, so a spike of one step stays visible. Points lie denser at the
beginning, because a logarithmic axis shows the first hundred steps as wide as the last hundred thousand.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cueva.study.records import Floats, Record, RunRecords, column, columns

POINTS: Final = 900
"""Points of a curve."""
NUMBERS: Final = 70_000
"""Numbers of all curves together; a model with sixty gates gets fewer points of each."""
CELLS: Final = 160_000
"""Cells of all heat maps together, and of all bias paths: 16 bits each, in base64 another third."""
SAMPLES: Final = 120
SAMPLE_CHARACTERS: Final = 240_000
"""Characters of all samples together; each is cut to its share."""
RATIO_UNIT: Final = 1000
"""A load relative to the mean is kept as thousandths in 16 bits: up to 65.5 times the mean."""


def condense(records: RunRecords) -> dict[str, Any]:
    """Turn records into what the page embeds; JSON has null where a number is missing.

    Returns:
        `series` (columns over one axis of points), `evals`, `loads` or None, `samples`.
    """
    return {
        "series": condense_steps(records.steps),
        "evals": condense_evals(records.evals, records.steps),
        "loads": condense_loads(records.loads),
        "samples": condense_samples(records.samples),
    }


# --- curves -----------------------------------------------------------------------------------------------------------


def condense_steps(steps: Sequence[Record]) -> dict[str, Any]:
    """Curves of the step records, over shared points.

    Returns:
        `step`, `tokens`, `seconds`: where each point ends; `steps`: how many steps it stands for; per curve a table
        with `mean` and `smooth`, and with `low` and `high` when points stand for several steps. `max_vio` has one
        smoothed curve per gate and `worst`, the highest gate of each step.
    """
    single = {key: column(steps, key) for key in ("loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second")}
    single |= {key: column(steps, key) for key in ("peak_share", "bias_speed", "mtp_weight", "sequence_loss")}
    depth = {key: columns(steps, key) for key in ("mtp_loss", "mtp_match")}
    max_vio_GS = columns(steps, "max_vio")  # S steps
    rows = 4 * (len(single) + 2 * len(depth["mtp_loss"])) + len(max_vio_GS) + 8
    border = borders(len(steps), min(POINTS, NUMBERS // rows))

    def curve(values_S: Floats) -> dict[str, Any]:
        mean, low, high = pooled(values_S, border)
        points = {"mean": packed(mean), "smooth": packed(pooled(smoothed(values_S), border)[0])}
        return points if len(border) == len(values_S) else points | {"low": packed(low), "high": packed(high)}

    last = np.append(border[1:], len(steps)) - 1 if len(border) else border
    result: dict[str, Any] = {key: packed(column(steps, key)[last], 12) for key in ("step", "tokens", "seconds")}
    result["steps"] = np.diff(np.append(border, len(steps))).tolist()
    result |= {key: curve(values) for key, values in single.items()}
    result |= {key: [curve(values) for values in table] for key, table in depth.items()}
    result["max_vio"] = [packed(pooled(smoothed(values), border)[0], 4) for values in max_vio_GS]
    result["worst"] = curve(highest(max_vio_GS))
    return result


def borders(count: int, limit: int) -> NDArray[np.int64]:
    """First indices of at most `limit` runs of neighbours that cover `range(count)`; two thirds are equally long."""
    if count <= limit:
        return np.arange(count)
    even = np.linspace(0, count, limit * 2 // 3, endpoint=False)
    early = np.geomspace(1, count, limit // 3, endpoint=False)
    return np.unique(np.concatenate([even, early]).astype(np.int64))


def pooled(values_S: Floats, border: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Mean, lowest and highest finite value between one border and the next; NaN where there is none."""
    if not len(border):
        return values_S, values_S, values_S
    known = np.isfinite(values_S)
    counts = np.add.reduceat(known.astype(np.int64), border)
    total = np.add.reduceat(np.where(known, values_S, 0.0), border)
    low = np.minimum.reduceat(np.where(known, values_S, np.inf), border)
    high = np.maximum.reduceat(np.where(known, values_S, -np.inf), border)
    absent = counts == 0
    mean = np.where(absent, np.nan, total / np.maximum(counts, 1))
    return mean, np.where(absent, np.nan, low), np.where(absent, np.nan, high)


def smoothed(values_S: Floats) -> Floats:
    """Mean over h steps on both sides of each step, taken twice, h = min(i / 12, S / 60) for step i of S.

    Both sides, so nothing lags; twice, so that a step counts the less the further it is. The first steps, where a loss
    falls fastest, are not smoothed at all. NaN values take no part and stay NaN.
    """
    count = len(values_S)
    index = np.arange(count)
    half = np.minimum(index // 12, max(count // 60, 1))
    start, stop = index - half, np.minimum(index + half + 1, count)
    known = np.isfinite(values_S)
    counts = np.concatenate([[0], np.cumsum(known)])
    around = np.maximum(counts[stop] - counts[start], 1)
    smooth_S = values_S
    for _ in range(2):
        total = np.concatenate([[0.0], np.cumsum(np.where(known, smooth_S, 0.0))])
        smooth_S = np.where(known, (total[stop] - total[start]) / around, np.nan)
    return smooth_S


def highest(table: Floats) -> Floats:
    """The largest finite value of each column, NaN where there is none; (0, S) gives an empty curve of NaN."""
    if not len(table):
        return np.full(table.shape[1], np.nan)
    top = np.where(np.isfinite(table), table, -np.inf).max(0)
    return np.where(np.isfinite(top), top, np.nan)


def packed(values: Floats, digits: int = 5) -> list[float | int | None]:
    """A column as JSON has it: `digits` significant digits, whole numbers without a point, null for NaN."""
    result: list[float | int | None] = []
    for value in values.tolist():
        if value != value:
            result.append(None)
            continue
        short = float(f"{value:.{digits}g}")
        result.append(int(short) if short.is_integer() and abs(short) < 1e15 else short)
    return result


def condense_evals(evals: Sequence[Record], steps: Sequence[Record]) -> dict[str, Any]:
    """Curves of the held-out measurements; `tokens` is taken from the step record at or before each."""
    if len(evals) > POINTS:
        evals = [evals[index] for index in np.linspace(0, len(evals) - 1, POINTS).astype(int)]
    at = column(evals, "step")
    seen = np.searchsorted(column(steps, "step"), at, side="right") - 1
    tokens = np.append(column(steps, "tokens"), np.nan)[seen] if len(steps) else np.full(len(evals), np.nan)
    result: dict[str, Any] = {"step": packed(at, 12), "tokens": packed(np.where(seen < 0, 0.0, tokens), 12)}
    result["seconds"] = packed(column(evals, "seconds"), 12)
    result |= {key: packed(column(evals, key)) for key in ("bits_per_byte", "loss")}
    result |= {key: [packed(row) for row in columns(evals, key)] for key in ("mtp_loss", "acceptance")}
    return result


# --- experts ----------------------------------------------------------------------------------------------------------


def condense_loads(loads: Sequence[Record]) -> dict[str, Any] | None:
    """Load and bias of every expert over time, or None when no record has any.

    Returns:
        `gates` and `experts`; `step`, where each column ends; `ratio`: load over the mean load of its gate, summed over
        the records of a column, little-endian uint16 in thousandths, [gate][column][expert], base64; `bias`: the value
        at the end of a column as int16 times `bias_unit[gate]`, or None when no gate has one. Columns where a gate was
        sent no token at all have ratio 0.
    """
    shaped = [(record, table) for record in loads if (table := _load_table(record)) is not None]
    if not shaped:
        return None
    gates, shape = shaped[-1][0].get("gates"), shaped[-1][1].shape
    shaped = [(record, table) for record, table in shaped if table.shape == shape]
    if not isinstance(gates, list) or len(gates) != shape[0]:
        gates = [f"gate {position + 1}" for position in range(shape[0])]
    limit = max(1, min(240, CELLS // (shape[0] * shape[1])))
    groups = np.array_split(np.arange(len(shaped)), min(limit, len(shaped)))
    load_CGE = np.stack([sum(shaped[index][1] for index in group) for group in groups])  # C columns
    mean_CG1 = load_CGE.mean(-1, keepdims=True)
    ratio_CGE = np.divide(load_CGE, mean_CG1, out=np.zeros_like(load_CGE), where=mean_CG1 > 0)
    ratio = np.minimum(np.round(ratio_CGE * RATIO_UNIT), 65535).astype("<u2").transpose(1, 0, 2)
    bias, bias_unit = _bias_paths([shaped[group[-1]][0] for group in groups], shape)
    return {
        "gates": [str(name) for name in gates],
        "experts": shape[1],
        "step": [shaped[group[-1]][0]["step"] for group in groups],
        "records": len(shaped),
        "ratio": _base64(ratio),
        "ratio_unit": RATIO_UNIT,
        "bias": bias,
        "bias_unit": bias_unit,
    }


def _load_table(record: Record) -> Floats | None:
    try:
        table = np.array(record.get("load"), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    usable = table.ndim == 2 and table.size > 0 and np.isfinite(table).all() and (table >= 0).all()
    return table if usable else None


def _bias_paths(records: Sequence[Mapping[str, Any]], shape: tuple[int, ...]) -> tuple[str | None, list[float | None]]:
    path_CGE = np.full((len(records), *shape), np.nan)
    for position, record in enumerate(records):
        rows = record.get("bias")
        for gate, row in enumerate(rows if isinstance(rows, list) and len(rows) == shape[0] else []):
            try:
                values = np.array(row, dtype=np.float64)
            except (TypeError, ValueError):
                continue
            if values.shape == shape[1:] and np.isfinite(values).all():
                path_CGE[position, gate] = values
    known_G = np.asarray(np.isfinite(path_CGE).all((0, 2)))
    if not known_G.any():
        return None, [None] * shape[0]
    unit_G = np.abs(np.nan_to_num(path_CGE)).max((0, 2)) / 32767
    scaled = np.nan_to_num(path_CGE) / np.where(unit_G > 0, unit_G, 1.0)[None, :, None]
    pairs = zip(unit_G.tolist(), known_G.tolist(), strict=True)
    units = [float(f"{unit:.6g}") if known else None for unit, known in pairs]
    return _base64(np.round(scaled).astype("<i2").transpose(1, 0, 2)), units


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


# --- samples ----------------------------------------------------------------------------------------------------------


def condense_samples(samples: Sequence[Record]) -> list[dict[str, Any]]:
    """Samples by step: at most `SAMPLES` steps, the first and the last among them, each text cut to its share."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for record in samples:
        prompt, text = record.get("prompt"), record.get("text")
        if isinstance(text, str):
            item = {"prompt": prompt if isinstance(prompt, str) else "", "text": text}
            by_step.setdefault(record["step"], []).append(item)
    steps = list(by_step)
    if len(steps) > SAMPLES:
        steps = [steps[index] for index in np.linspace(0, len(steps) - 1, SAMPLES).round().astype(int)]
    share = SAMPLE_CHARACTERS // max(1, sum(len(by_step[step]) for step in steps))
    for step in steps:
        for item in by_step[step]:
            for key in ("prompt", "text"):
                if len(item[key]) > share:
                    item[key], item["cut"] = item[key][:share], True
    return [{"step": step, "items": by_step[step]} for step in steps]
