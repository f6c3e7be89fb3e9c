"""cueva's native engine beside llama.cpp, ik_llama.cpp, transformers and plain PyTorch, in one interleaved run.

    python -m benchmarks.engine [--shape bench|pocket|PATH] [--weights bf16,q8_0] [--peers llama,ik,transformers,torch]
    python -m benchmarks.engine --parts memory --weights bf16
    python -m benchmarks.engine --drafting --weights bf16,q8_0
    python -m benchmarks.engine --quick                   # tiny: shows that everything works

Tokens per second of decoding one sequence at some cached lengths, of several sequences at once, and of prompts; beside
each figure how many times faster than each peer, and its share of the fair bound (`roofline.py`) of the same minute.
The models are random and drawn from a seed (`shapes.py`); peers run the same weights from GGUF files. A peer that is
not installed, or that fails, is named with the reason. `--json` keeps everything, single repetitions included.

Read `contestant.py` (what is timed), `peers.py` and `llama.py` (how each engine is run), `engine_run.py` and
`engine_rows.py` (in which order, and what is made of it), `drafting.py` and `opening.py` (the other parts).

Needs the extras `gguf` and `peers` for all of it. Nothing else should compute meanwhile.
"""

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import peers, shapes
from benchmarks.ceilings import Machine
from benchmarks.drafting import ACCEPTANCES, measure_drafting
from benchmarks.engine_rows import Work
from benchmarks.engine_run import Asked, run
from benchmarks.engine_table import absences, drafting_lines, memory_lines, speed_table
from benchmarks.opening import measure_opening
from cueva.engine.native.plan import WEIGHT_FORMATS
from cueva.errors import CuevaError, RequestError, nearest
from cueva.kernels import native
from cueva.study import machine as this

PARTS: Final = ("speed", "memory", "drafting")
FOLDER: Final = Path("runs/bench")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON; returns the exit status."""
    asked = _parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if asked.quick:
        _make_quick(asked)
    try:
        result = measure(asked)
    except CuevaError as error:
        print(f"benchmarks.engine: {error}", file=sys.stderr)
        return error.exit_status
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(result)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = _list_of(int)
    names = _list_of(str)
    parser.add_argument("--shape", default="bench", help="bench (728M), pocket, or a model directory; default bench")
    parser.add_argument("--weights", type=names, default=["bf16", "fp8", "q8_0", "q4_0"], help="of the native engine")
    parser.add_argument("--cached", type=numbers, default=[16, 512, 2048, 8192], help="positions; 0: none of these")
    parser.add_argument("--sequences", type=numbers, default=[16], help="at once, 64 cached each; 0: none of these")
    parser.add_argument("--prefill", type=numbers, default=[512, 2048], help="tokens of a prompt; 0: none of these")
    parser.add_argument("--threads", type=int, default=native.default_threads(), help="default: what this machine has")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of every figure; default 3")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn, about; default 1")
    parser.add_argument("--peers", type=names, default=list(peers.PEERS), help=f"of {','.join(peers.PEERS)}; 0: none")
    parser.add_argument("--no-probe", action="store_true", help="take the first variant of a peer, not its best")
    parser.add_argument("--parts", type=names, default=["speed", "memory"], help=f"of {','.join(PARTS)}")
    parser.add_argument("--drafting", action="store_const", dest="parts", const=["drafting"], help="that part alone")
    parser.add_argument(
        "--acceptance", type=_list_of(float, zero=True), default=list(ACCEPTANCES), help="of drafts, forced by a coin"
    )
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of an answer, for drafting; default 256")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"for models and logs; default {FOLDER}")
    parser.add_argument("--json", type=Path, help="file for the whole result")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and one short repetition of everything asked"
    )
    return parser


def _list_of(kind: Callable[[str], Any], *, zero: bool = False) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",") if part and (zero or part != "0")]

    return read


def _make_quick(asked: argparse.Namespace) -> None:
    """Small sizes for whatever was left at its default."""
    default = vars(_parser().parse_args([]))
    small = {"shape": "quick", "cached": [16, 96], "sequences": [3], "prefill": [32], "repeats": 1, "seconds": 0.02}
    small |= {"tokens": 24, "no_probe": True, "acceptance": [0.0, 0.8]}
    for name, value in small.items():
        if getattr(asked, name) == default[name]:
            setattr(asked, name, value)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for.

    Returns:
        `machine`, `model`, `asked`, and of each part its own: `speed` (`rows`, `settings`, `absent`), `memory`,
        `drafting`.

    Raises:
        RequestError: a name that does not exist, a length that does not fit the model, or no native kernels.
    """
    _check(asked)
    files = shapes.prepare(asked.shape, asked.folder)
    works, left_out = _works(asked, files)
    machine = Machine(asked.threads, asked.folder, (32 << 20) if asked.quick else (256 << 20))
    memory = this.memory()
    result: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "processor": this.processor(),
            "system": platform.platform(),
            "cores": this.cores(),
            "memory": memory["total"],
            "instruction set": native.instruction_set(),
            "reading": machine.how,
        },
        "model": shapes.describe(files),
        "asked": {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()},
        "left_out": left_out,
        "quick": asked.quick,
    }
    if "speed" in asked.parts and works:
        plan = Asked(
            weights=asked.weights,
            works=works,
            peers=asked.peers,
            threads=asked.threads,
            repeats=asked.repeats,
            seconds=asked.seconds,
            probe=not asked.no_probe,
        )
        result["speed"] = run(files, plan, machine)
    if "memory" in asked.parts:
        result["memory"] = measure_opening(files, asked.weights, asked.threads, asked.repeats)
    if "drafting" in asked.parts:
        prompts = [length for length in asked.cached if length + asked.tokens <= files.config.max_position_embeddings]
        result["drafting"] = measure_drafting(
            files,
            asked.weights,
            prompts,
            asked.threads,
            asked.repeats,
            asked.tokens,
            acceptances=asked.acceptance,
        )
    return result


def _check(asked: argparse.Namespace) -> None:
    for given, known, what in (
        (asked.weights, WEIGHT_FORMATS, "weights"),
        (asked.peers, peers.PEERS, "peer"),
        (asked.parts, PARTS, "part"),
    ):
        for name in given:
            if name not in known:
                raise RequestError(f"there is no {what} {name!r}{nearest(name, known)}; {', '.join(known)} fit")
    for name in ("threads", "repeats", "tokens"):
        if getattr(asked, name) < 1:
            raise RequestError(f"--{name} is {getattr(asked, name)}, but it must be at least 1")
    if native.extension() is None:
        raise RequestError(f"there is no native engine to measure: {native.missing()}")


def _works(asked: argparse.Namespace, files: shapes.Files) -> tuple[list[Work], list[str]]:
    """What is measured, shortest caches first, since they only grow; and what does not fit the model."""
    works = [Work("prefill", size) for size in asked.prefill] + [Work("many", size) for size in asked.sequences]
    works += [Work("decode", size) for size in sorted(asked.cached)]
    most = files.config.max_position_embeddings
    left_out = [f"{work}: this model has {most} positions" for work in works if work.positions > most]
    return [work for work in works if work.positions <= most], left_out


def lines(result: dict[str, Any]) -> list[str]:
    """The result as a person reads it."""
    found = [f"{result['machine']['processor']}, {result['asked']['threads']} threads, {result['when']}"]
    if result["quick"]:
        found.append("a quick run of a tiny model: it shows that everything works and says nothing about speed")
    found += [f"not measured: {what}" for what in result["left_out"]]
    if "speed" in result:
        found += ["", *speed_table(result["speed"]), *absences(result["speed"])]
    if "memory" in result:
        found += ["", *memory_lines(result["memory"])]
    if "drafting" in result:
        found += ["", *drafting_lines(result["drafting"])]
    return found


if __name__ == "__main__":
    sys.exit(main())
