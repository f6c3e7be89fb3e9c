"""Everything a run needs to go on as if it had never stopped: `RUN/state/step-N/`.

    weights.safetensors      float32 weights and balance biases by their published names, experts stacked
    optimizer.safetensors    AdamW's moments and step counts: exp_avg.NAME, exp_avg_sq.NAME, step.NAME
    random.safetensors       states of torch's random generators, as bytes
    state.json               the place in the run: step, next row, seconds, fingerprints
    manifest.json            size and sha256 of the others, written last

A folder appears whole or not at all; what was damaged afterwards is found by its hash. Tensors go by name, so that a
run which splits them over processes can read the same folder.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cueva.errors import CheckpointError
from cueva.files import atomic_folder, sha256_file

FORMAT: Final = 1
MOMENTS: Final = ("exp_avg", "exp_avg_sq", "step")
STEP_FOLDER: Final = re.compile(r"step-(\d+)")


@dataclass(kw_only=True, slots=True)
class Place:
    """Where a run is. The order of rows and all schedules follow from it; nothing else is remembered."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    row: int = 0
    """Rows taken from the data: the next step begins with this one, counted through all epochs."""
    tokens: int = 0
    """Positions computed."""
    seconds: float = 0.0
    """Spent in training steps."""
    step_seconds: float = 0.0
    """Of the last step: what a run limited by time expects of the next."""
    skipped_in_a_row: int = 0
    saves: int = 0
    """Times this run was saved."""
    bits_per_byte: float | None = None
    """Held-out, if it was evaluated at this very step."""
    config_fingerprint: str = ""
    data_fingerprint: str = ""
    threads: int = 0
    torch: str = ""


def save_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, place: Place) -> Path:
    """Write the state after step `place.step` and return its folder.

    Raises:
        CheckpointError: no room or no permission; whatever was saved before is untouched.
    """
    folder = run / "state" / f"step-{place.step}"
    tensors = {
        "weights.safetensors": _weights(model),
        "optimizer.safetensors": _moments(model, optimizer),
        "random.safetensors": _random_states(),
    }
    needed = sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    with atomic_folder(folder, needed_bytes=needed) as new:
        for name, part in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, new / name)
        (new / "state.json").write_text(json.dumps(asdict(place), indent=2) + "\n", encoding="utf-8")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(new.iterdir())
        }
        manifest = {"format": FORMAT, "files": files}
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folder


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Place:
    """Put a saved state into a model and its optimizer, in place.

    Raises:
        CheckpointError: the folder is damaged, or it belongs to a model of another shape; names the first tensor. The
            model may have been written to by then.
    """
    damage = damage_of(folder)
    if damage is not None:
        raise CheckpointError(f"the training state {folder} cannot be used: {damage}")
    with torch.no_grad():
        _copy_into(folder / "weights.safetensors", _weights(model))
        for parameter in model.parameters():
            if parameter.requires_grad:
                optimizer.state[parameter] = _fresh_moments(parameter)
        _copy_into(folder / "optimizer.safetensors", _moments(model, optimizer))
    with safe_open(folder / "random.safetensors", framework="pt") as file:
        torch.set_rng_state(file.get_tensor("cpu"))
        if torch.cuda.is_available():
            count = sum(key.startswith("cuda.") for key in file.keys())  # noqa: SIM118
            for device in range(min(count, torch.cuda.device_count())):
                torch.cuda.set_rng_state(file.get_tensor(f"cuda.{device}"), device)
    return read_place(folder)


def read_place(folder: Path) -> Place:
    """Read `state.json` of a state.

    Raises:
        CheckpointError: it is missing or not as written by `save_state`.
    """
    try:
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return Place(**{field.name: values[field.name] for field in fields(Place)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'state.json'} cannot be read: {error!r}") from error


def damage_of(folder: Path) -> str | None:
    """Say what is wrong with a state's files; None when sizes and hashes are as they were written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"it is of format {manifest['format']}, and this version of cueva reads format {FORMAT}"
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, and {expected['bytes']} were written"
            if sha256_file(path) != expected["sha256"]:
                return f"the content of {name} is not what was written"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error!r})"
    return None


def saved_states(run: Path) -> list[Path]:
    """The states of a run, newest first, damaged ones included."""
    found: list[tuple[int, Path]] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in (run / "state").iterdir():
            match = STEP_FOLDER.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def prune_states(run: Path, *, keep_last: int, keep_every: int) -> list[Path]:
    """Delete the states that need not be kept, and return them.

    Kept are the `keep_last` newest, the one with the fewest held-out bits per byte among those evaluated when they
    were saved, and, if `keep_every` is not 0, every `keep_every`-th that was saved.
    """
    states = saved_states(run)
    places: dict[Path, Place] = {}
    for path in states:
        with contextlib.suppress(CheckpointError):
            places[path] = read_place(path)
    kept = set(states[:keep_last])
    evaluated = {path: place.bits_per_byte for path, place in places.items() if place.bits_per_byte is not None}
    if evaluated:
        kept.add(min(evaluated, key=lambda path: evaluated[path]))
    kept |= {path for path, place in places.items() if keep_every and place.saves % keep_every == 0}
    gone = [path for path in states if path not in kept]
    for path in gone:
        # Without its manifest a folder is no state: a crash in the middle leaves nothing that could be taken for one.
        with contextlib.suppress(OSError):
            (path / "manifest.json").unlink()
        shutil.rmtree(path, ignore_errors=True)
    return gone


# --- private ----------------------------------------------------------------------------------------------------------


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once even if tied."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # A parameter that never had a gradient has no moments yet; it is saved as if it had just begun.
        state: Mapping[str, Tensor] = optimizer.state.get(parameter) or _fresh_moments(parameter)
        found |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
    return found


def _fresh_moments(parameter: Tensor) -> dict[str, Tensor]:
    """What AdamW begins with. Its fused form wants the step count as a float32 tensor beside the weights."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _copy_into(path: Path, into: Mapping[str, Tensor]) -> None:
    with _readable(path), safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if names != set(into):
            name = min(names ^ set(into))
            has = "holds" if name in names else "lacks"
            raise CheckpointError(
                f"{path} {has} `{name}`, so it belongs to a model of another shape",
                way_out="try another run.name, or the model settings that the run began with",
            )
        for name, tensor in into.items():
            saved = file.get_tensor(name)
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise CheckpointError(
                    f"`{name}` in {path} is {saved.dtype} {tuple(saved.shape)}, but the model's is {tensor.dtype} "
                    f"{tuple(tensor.shape)}",
                    way_out="try another run.name, or the model settings that the run began with",
                )
            tensor.copy_(saved)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
