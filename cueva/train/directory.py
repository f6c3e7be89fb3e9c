"""The folder of a run, and the two ways to disturb one: a second process, and Ctrl-C."""

import contextlib
import signal
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cueva.errors import ConfigError, RunError
from cueva.files import atomic_write, disk_errors
from cueva.train.config_file import config_difference
from cueva.train.settings import TrainConfig

LOCK: Final = ".lock"


def open_directory(config: TrainConfig, *, force: bool) -> list[str]:
    """Make the run's directory, or check that the run in it is this one. Returns what differs, if that is accepted.

    Raises:
        ConfigError: another run lives there, or something else does.
    """
    directory, path = config.directory, config.directory / "config.toml"
    changes: list[str] = []
    if path.is_file():
        try:
            old = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", way_out="try another run.name") from error
        with contextlib.suppress(ConfigError):  # keys that are new since then have their defaults
            old = TrainConfig(**old).table()
        changes = config_difference(old, config.table())
        if changes and not force:
            raise ConfigError(
                f"{directory} holds a run with other settings:\n    " + "\n    ".join(changes),
                way_out="try another run.name, or --force to go on with the new settings",
            )
    elif directory.is_dir() and any(entry.name != LOCK for entry in directory.iterdir()):
        raise ConfigError(
            f"{directory} exists and holds no training run (there is no config.toml in it)",
            way_out="try another run.name or run.folder",
        )
    if changes or not path.is_file():
        atomic_write(path, config.toml())
    return changes


@contextlib.contextmanager
def only_one_process(directory: Path) -> Iterator[None]:
    """Hold the run's lock, which the system drops when the process ends, however it ends."""
    with disk_errors(directory / LOCK):
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    with file:
        try:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise RunError(
                    f"another process is training {directory} at this moment", way_out="try another run.name"
                ) from error
        yield


class Interrupts:
    """Ctrl-C and SIGTERM ask politely once: the step is finished and saved. The second time they stop at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
