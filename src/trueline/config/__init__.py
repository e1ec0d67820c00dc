"""A run's configuration: flat YAML keys and options of the command line, typed and within range."""

from trueline.config.arguments import (
    NOT_NEEDED,
    RENAMED,
    AlignmentConfig,
    ConfigError,
    DataArguments,
    ModelArguments,
    RunConfig,
    WatchArguments,
    coerce,
    load_run_config,
    parse_overrides,
    read_yaml,
)
from trueline.options import scalar

__all__ = [
    "NOT_NEEDED",
    "RENAMED",
    "AlignmentConfig",
    "ConfigError",
    "DataArguments",
    "ModelArguments",
    "RunConfig",
    "WatchArguments",
    "coerce",
    "load_run_config",
    "parse_overrides",
    "read_yaml",
    "scalar",
]
