"""Weights from and to disk, in the published format.

Read `directory.py` first (what is checked), then `load.py` and `save.py`; `names.py` is the inventory, `config_file.py`
the config, `fp8.py` block-scaled weights, and `families/` what differs between published families.
"""

from cueva.checkpoint.config_file import ConfigReading, config_dict, departures, read_config_file, write_config
from cueva.checkpoint.directory import CheckpointWarning, ModelDirectory, open_directory, read_config
from cueva.checkpoint.hub import resolve
from cueva.checkpoint.info import ModelInfo, read_model_info
from cueva.checkpoint.load import load_model
from cueva.checkpoint.names import TensorEntry, inventory
from cueva.checkpoint.save import save_model

__all__ = [
    "CheckpointWarning",
    "ConfigReading",
    "ModelDirectory",
    "ModelInfo",
    "TensorEntry",
    "config_dict",
    "departures",
    "inventory",
    "load_model",
    "open_directory",
    "read_config",
    "read_config_file",
    "read_model_info",
    "resolve",
    "save_model",
    "write_config",
]
