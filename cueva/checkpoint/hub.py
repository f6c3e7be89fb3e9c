"""From what a user types to a model directory on this machine: a local path, or `org/name` on the Hugging Face hub."""

import errno
import os
import re
from pathlib import Path
from typing import Final

from cueva.errors import CheckpointError, DependencyError
from cueva.files import recover_folder

# Everything a model directory may hold that we read. Never pickled weights, never code.
WANTED: Final = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
UNWANTED: Final = ("*.bin", "*.py", "*.pt", "*.pth", "*/*")

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(path_or_id: str | os.PathLike[str], *, offline: bool = False, revision: str | None = None) -> Path:
    """Find a model directory, downloading it if it is a hub id that is not here yet.

    A local path wins over a hub id of the same spelling. A download fetches configuration, tokenizer and safetensors
    files of the top folder only.

    Args:
        path_or_id: a path, or `org/name`.
        offline: use only what was downloaded before (as does the environment variable `HF_HUB_OFFLINE=1`).
        revision: a branch, tag or commit of the hub repository; not allowed with a local path.

    Raises:
        CheckpointError: there is neither such a path nor such a model, or the hub cannot be reached.
    """
    path = Path(path_or_id)
    recover_folder(path)
    if path.exists():
        if revision is not None:
            raise CheckpointError(f"{path} is a local path, which has no revision {revision!r}")
        return path
    name = os.fspath(path_or_id)
    if not _HUB_ID.fullmatch(name) or name.endswith((".gguf", ".safetensors", ".json")):
        raise CheckpointError(
            f"there is no model directory {name}", way_out="try an existing path, or a hub id such as org/name"
        )
    folder = _download(name, offline=offline, revision=revision)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"the hub's {name} holds no config.json: it is no model in the published format")
    return folder


# --- private ----------------------------------------------------------------------------------------------------------


def _download(name: str, *, offline: bool, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise DependencyError(
            f"fetching {name} needs the package huggingface_hub ({error})", way_out="try pip install huggingface_hub"
        ) from error
    offline = offline or bool(constants.HF_HUB_OFFLINE)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                local_files_only=offline,
                allow_patterns=list(WANTED),
                ignore_patterns=list(UNWANTED),
            )
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"the hub gives {name} only to users who accepted its terms",
            way_out=f"try accepting them at https://huggingface.co/{name}, then `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"the hub's {name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no local path {name}, and no such model on the hub that you may read",
            way_out="try checking the spelling; for a private model, `hf auth login`",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise CheckpointError(
                f"{name} was not downloaded before (or not completely), and downloads are switched off",
                way_out="try without offline mode (HF_HUB_OFFLINE, --offline), or the path of a local directory",
            ) from error
        raise _unreachable(name, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cache = constants.HF_HUB_CACHE
            raise CheckpointError(
                f"no room to download {name}: the disk of {cache} is full",
                way_out="try making room, or HF_HOME on another disk; a later try goes on where this one stopped",
            ) from error
        raise _unreachable(name, error) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name} is neither a local path nor a valid hub id: {error}") from error
    except Exception as error:
        # The hub's HTTP library has errors of its own for timeouts and proxies, which library it is changes with
        # versions.
        if not type(error).__module__.startswith(("httpx", "requests", "urllib3")):
            raise
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"cannot fetch {name} from the hub: {reason}",
        way_out="try again when the network is back (what was downloaded is kept), or the path of a local directory",
    )
