"""The flag `--config=FILE:preset`, and `--config.KEY=VALUE` for every key of what the file gives."""

import importlib.machinery
import pathlib
import re
import sys
import types
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from gfn_jax.commands import shipped
from gfn_jax.errors import user_code

EXAMPLE = "--config=FILE:preset or --config.KEY=VALUE"
_NAMED = re.compile("--?config(=|$)")


class Unsettable(flags.ArgumentParser):
    """What another parser makes of a word, but `None` unsets the value."""

    def __init__(self, parser: flags.ArgumentParser):
        self.parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self.parser.parse(argument)

    def flag_type(self) -> str:
        return self.parser.flag_type()


UNSETTABLE: dict[type, flags.ArgumentParser] = {
    float: flags.FloatParser(),
    int: flags.IntegerParser(),
    str: flags.ArgumentParser(),
}


def define_config(values: flags.FlagValues, argv: list[str], source: str | None) -> None:
    """Defines the flag, whose value is the config of `source` with the changes in `argv`; None where there is none.

    Raises:
        OSError, ValueError: as of `load_config`.
    """
    if source is None:
        flags.DEFINE_string("config", None, "FILE:preset", flag_values=values)
        return
    for kind, parser in UNSETTABLE.items():
        config_flags.register_flag_parser_for_type(kind, Unsettable(parser))
    config = load_config(source)
    config_flags.DEFINE_config_dict("config", config, "FILE:preset", flag_values=values, sys_argv=argv)


def given_keys(values: flags.FlagValues) -> list[str]:
    """The config's keys that the command line has set: `sampling.queries` of `--config.sampling.queries=4`."""
    return sorted(config_flags.get_override_values(values["config"]))


def with_default(argv: list[str], source: str) -> list[str]:
    """A command line that names `source`, unless it names a config itself."""
    return argv if any(map(_NAMED.match, argv)) else [argv[0], f"--config={source}", *argv[1:]]


def split_config(argv: list[str]) -> tuple[list[str], str | None]:
    """The other words of a command line, and the FILE:preset that it names, if it does.

    Raises:
        ValueError: it names two, or an empty one.
    """
    words, named = [], []
    rest = iter(argv)
    for word in rest:
        flag = _NAMED.match(word)
        if flag:
            named.append(word[flag.end() :] if flag[1] else next(rest, ""))
        else:
            words.append(word)
    if len(named) > 1:
        raise ValueError(f"there are {len(named)} configs, {' and '.join(named)}; name one")
    if named == [""]:
        raise ValueError("--config names no file; write --config=FILE:preset")
    return words, named[0] if named else None


def load_config(source: str) -> ConfigDict:
    """What `get_config` of FILE:preset returns, locked.

    Raises:
        OSError: no such file.
        ValueError: the file fails, or gives no config; or what it says itself of its preset.
    """
    path, colon, preset = source.partition(":")
    if pathlib.Path(path).resolve().parent == shipped.folder():
        shipped.make_importable()
    module = types.ModuleType("gfn_jax_config")
    sys.modules[module.__name__] = module  # where dataclasses look for what they refer to
    loader = importlib.machinery.SourceFileLoader(module.__name__, path)
    loader.get_data(path)  # a file that cannot be read is no fault of what is in it
    with user_code(path):
        loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} is no config: it defines no get_config()")
    with user_code(path, passed=(ValueError,)):  # an unknown preset
        config = module.get_config(*[preset] * bool(colon))
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config of {path} must return an ml_collections.ConfigDict, not {type(config).__name__}")
    return config.lock()
