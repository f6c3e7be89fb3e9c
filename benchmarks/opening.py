"""Memory of the native engine, and how long it takes from opening a model directory to the first token.

    python -m benchmarks.opening PATH --weights bf16 [--mapped] --threads 2      # one measurement, as JSON

Each measurement is a process of its own. It imports torch, notes its memory, then opens the directory (whose files
were read before, so they come from the page cache), runs a short prompt and takes the first token. Memory is what the
process holds by itself: mapped files, which the system may drop at any time, are in the peak alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.shapes import Files, stored_bytes

PROMPT_TOKENS: Final = 16
TEN_GB: Final = 10e9


def measure_opening(files: Files, weights: Sequence[str], threads: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every weight format packed, and the stored one mapped as well; medians.

    Returns:
        For each: `weights`, `how` ("packed" or "mapped"), bytes of `weight_bytes`, `cache_bytes`, `beyond_torch` (what
        the process holds more than after `import torch`), `rest` (of that, neither weights nor cache) and
        `peak_beyond_torch`; `first_token_seconds`, and `seconds_for_10_gb`, the same scaled by the size of the files.
        Or `failed`, with the reason.
    """
    for file in files.directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    size = stored_bytes(files.directory)
    found = []
    for how, some in (("packed", weights), ("mapped", [one for one in weights if one == "bf16"])):
        for one in some:
            runs = []
            words = [str(files.directory), "--weights", one, "--threads", str(threads)]
            for _ in range(repeats):
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.opening", *words, *(["--mapped"] if how == "mapped" else [])],
                    capture_output=True,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                    cwd=Path(__file__).resolve().parent.parent,
                    check=False,
                )
                if done.returncode:
                    why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                    found.append({"weights": one, "how": how, "failed": why})
                    break
                runs.append(json.loads(done.stdout))
            else:
                row: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
                row |= {"weights": one, "how": how}
                row["rest"] = row["beyond_torch"] - row["weight_bytes"] - row["cache_bytes"]
                row["seconds_for_10_gb"] = row["first_token_seconds"] * TEN_GB / size
                found.append(row)
    return found


def _status(name: str) -> int:
    """Bytes that /proc tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Measure once and print a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--mapped", action="store_true", help="use the matrices as they lie in the files")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()

    import torch

    torch.set_num_threads(asked.threads)
    before, peak_before = _status("RssAnon"), _status("VmHWM")

    from cueva.checkpoint import open_directory
    from cueva.engine.native import DirectoryWeights, NativeModel, NativeRunner

    started = time.perf_counter()
    source = DirectoryWeights(open_directory(asked.path))
    model = NativeModel(source, asked.weights, threads=asked.threads, zero_copy=asked.mapped)
    runner = NativeRunner(model, threads=asked.threads, prefill_chunk=PROMPT_TOKENS)
    cache = runner.new_cache(PROMPT_TOKENS + 1)
    prompt = [token % model.config.vocab_size for token in range(PROMPT_TOKENS)]
    runner.logits(runner.prefill(cache, prompt)[-1]).argmax()
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "weight_bytes": model.bytes,
                "cache_bytes": cache.allocated_bytes,
                "beyond_torch": _status("RssAnon") - before,
                "peak_beyond_torch": _status("VmHWM") - peak_before,
                "first_token_seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
