"""Doors between a frozen dataclass and the outside: mappings, files, and flags of a command.

The dataclass is the one place that says what there is: names, types, defaults, one line of help.
A door only checks and converts, and says where a bad value stands. Sections are dataclasses
inside the dataclass; a file writes them as tables, a command line needs no sections, because
the names of the fields are unique over all of them.

Types that a field may have: bool, int, float, str, Optional and Tuple[..., ...] of these,
Dict[str, Any], and a dataclass.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_type_hints,
)

import click
import yaml

from besskge_core.errors import ConfigError
from besskge_core.registry import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "SectionCommand",
    "click_options",
    "dump",
    "from_mapping",
    "load",
    "replace_flags",
    "to_mapping",
]

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])
PathLike = Union[str, Path]

SUFFIXES = (".toml", ".yaml", ".yml", ".json")


# -- mappings --------------------------------------------------------------------------------------


def from_mapping(cls: Type[T], mapping: Mapping[str, Any], source: str = "") -> T:
    """A configuration from nested mappings, such as a parsed file.

    Args:
        cls: a dataclass, with sections that are dataclasses.
        mapping: section to key to value; what is missing keeps its default.
        source: where the mapping comes from, for messages.

    Raises:
        ConfigError: unknown key, value of another type, or what the dataclass itself refuses.
    """
    where = f"{source}: " if source else ""
    try:
        return _build(cls, cls, mapping, "")
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def to_mapping(config: Any) -> Dict[str, Any]:
    """Section to key to value; what is None is left out."""
    return {
        name: to_mapping(value) if _is_section(value) else _plain(value)
        for name, value in _items(config)
        if value is not None
    }


def load(cls: Type[T], path: PathLike) -> T:
    """Read a configuration from a TOML, YAML or JSON file.

    Raises:
        ConfigError: no such file, another ending, bad syntax, or bad content.
    """
    path = Path(path)
    parsers: Dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads, ".json": json.loads, ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
    }  # fmt: skip
    if path.suffix not in parsers:
        raise ConfigError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        content = parsers[path.suffix](path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as {path.suffix[1:]}: {reason}") from error
    return from_mapping(cls, {} if content is None else content, source=str(path))


def dump(config: Any, path: PathLike) -> None:
    """Write a configuration as TOML, which :func:`load` reads back as it was.

    Raises:
        ConfigError: a value that TOML cannot hold, such as None where that is not the default.
    """
    Path(path).write_text(_toml(config), encoding="utf-8")


def replace_flags(config: T, flags: Mapping[str, Any]) -> T:
    """The same configuration with other values of some fields, named without their section.

    Mappings are merged: flags add to the options that a file gave.

    Raises:
        ConfigError: unknown field, value of another type, or what the dataclass itself refuses.
    """
    mapping = _explicit(config)
    leaves = {leaf.name: leaf for leaf in _leaves(type(config))}
    for name, value in flags.items():
        if name not in leaves:
            raise ConfigError(f"unknown option {name!r}{nearest(name, leaves)}")
        section = mapping
        for step in leaves[name].path[:-1]:
            section = section[step]
        is_mapping = isinstance(value, Mapping) and isinstance(section[name], Mapping)
        section[name] = {**section[name], **value} if is_mapping else value
    return from_mapping(type(config), mapping)


def _build(root: type, cls: Type[T], mapping: Any, path: str) -> T:
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path or 'content'} is {_shown(mapping)}, expected a table of keys")
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            raise ConfigError(_unknown_key(root, cls, str(key), path))
    values = {
        name: _build(root, hints[name], value, _join(path, name))
        if dataclasses.is_dataclass(hints[name])
        else _convert(hints[name], value, _join(path, name))
        for name, value in mapping.items()
    }
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # registries, and fields that have no default
        raise ConfigError(f"[{path}]: {error}" if path else str(error)) from error


def _unknown_key(root: type, cls: type, key: str, path: str) -> str:
    """Names the nearest key: of this section, or else of another one."""
    names = [field.name for field in dataclasses.fields(cls)]
    place = f" in [{path}]" if path else ""
    if not nearest(key, names):
        for leaf in _leaves(root):
            if leaf.name == key and leaf.path[:-1]:
                return f"unknown key {key!r}{place}; it belongs in [{'.'.join(leaf.path[:-1])}]"
    return f"unknown key {key!r}{place}{nearest(key, names)}; expected some of {sorted(names)}"


# -- types -----------------------------------------------------------------------------------------


def _convert(hint: Any, value: Any, path: str) -> Any:
    """The value as the type that the field has."""
    inner = _optional(hint)
    if inner is not None:
        return None if value is None else _convert(inner, value, path)
    if _origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(
            _convert(hint.__args__[0], item, f"{path}[{i}]") for i, item in enumerate(value)
        )
    if _origin(hint) is dict and isinstance(value, Mapping):
        return {_key(key, path): item for key, item in value.items()}
    converted = _CONVERTERS.get(hint, lambda value: None)(value)
    if converted is None:
        raise ConfigError(f"{path} is {_shown(value)}, expected {_named(hint)}")
    return converted


def _to_bool(value: Any) -> Optional[bool]:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _to_int(value: Any) -> Optional[int]:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?\d+", value) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _to_float(value: Any) -> Optional[float]:
    """YAML reads 1e-3 as a string."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


_CONVERTERS: Dict[Any, Callable[[Any], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: lambda value: value if isinstance(value, str) else None,
    Any: lambda value: value,
}


def _optional(hint: Any) -> Any:
    """X of Optional[X], else None."""
    arguments = getattr(hint, "__args__", ())
    if _origin(hint) is not Union or type(None) not in arguments:
        return None
    return next(a for a in arguments if a is not type(None))


def _origin(hint: Any) -> Any:
    return getattr(hint, "__origin__", None)


def _named(hint: Any) -> str:
    if _origin(hint) is dict:
        return "a table of keys"
    if _origin(hint) is tuple:
        return f"a list of {_named(hint.__args__[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return names.get(hint, str(hint))


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{path} has the key {_shown(key)}, expected a string")
    return key


# -- what a dataclass holds ------------------------------------------------------------------------


class Leaf(NamedTuple):
    """A field that is not a section.

    Attributes:
        path: names of its sections and its own.
        hint: its type.
        field: of the dataclass.
    """

    path: Tuple[str, ...]
    hint: Any
    field: Any

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def default(self) -> Any:
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return None if self.field.default is dataclasses.MISSING else self.field.default


def _leaves(cls: type, path: Tuple[str, ...] = ()) -> Iterator[Leaf]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        here, hint = (*path, field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, here)  # type: ignore[arg-type]
        else:
            yield Leaf(here, hint, field)


def _unique_leaves(cls: type) -> List[Leaf]:
    places: Dict[str, Tuple[str, ...]] = {}
    leaves = list(_leaves(cls))
    for leaf in leaves:
        if leaf.name in places:
            both = f"{'.'.join(places[leaf.name])} and {'.'.join(leaf.path)}"
            raise ConfigError(f"{both} would be the same flag --{_flag(leaf.name)}; rename one")
        places[leaf.name] = leaf.path
    return leaves


def _items(config: Any) -> Iterator[Tuple[str, Any]]:
    for field in dataclasses.fields(config):
        yield field.name, getattr(config, field.name)


def _is_section(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _explicit(config: Any) -> Dict[str, Any]:
    """Like `to_mapping`, with None."""
    return {
        name: _explicit(value) if _is_section(value) else value for name, value in _items(config)
    }


def _plain(value: Any) -> Any:
    """With lists for tuples, as files have them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# -- TOML ------------------------------------------------------------------------------------------


def _toml(config: Any, path: Tuple[str, ...] = ()) -> str:
    """Keys first, then a table for each section and each mapping."""
    keys: List[str] = []
    tables: List[str] = []
    leaves = {leaf.name: leaf for leaf in _leaves(type(config)) if len(leaf.path) == 1}
    for name, value in _items(config):
        here = (*path, name)
        if _is_section(value):
            tables.append(_toml(value, here))
        elif isinstance(value, Mapping):
            lines = [f"{_toml_key(k)} = {_toml_value(v, here)}" for k, v in value.items()]
            tables.append("\n".join([f"[{'.'.join(here)}]", *lines]) + "\n")
        elif value is not None:
            keys.append(f"{name} = {_toml_value(value, here)}")
        elif leaves[name].default is not None:
            raise ConfigError(f"{'.'.join(here)} is None, which TOML cannot say")
    header = [f"[{'.'.join(path)}]"] if path and (keys or not tables) else []
    own = "\n".join([*header, *keys])
    return "\n".join([*([own + "\n"] if own else []), *tables])


def _toml_value(value: Any, path: Tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf, -inf, nan
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml_value(item, path) for item in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(k)} = {_toml_value(v, path)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    raise ConfigError(f"{'.'.join(path)} holds {_shown(value)}, which TOML cannot say")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)


def _toml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- flags -----------------------------------------------------------------------------------------


class SectionOption(click.Option):
    """A flag made of a field; help lists it under its section."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionCommand(click.Command):
    """A command whose help lists the flags of :func:`click_options` section by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: Dict[str, List[Tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = f"Options: {getattr(parameter, 'section', '')}".rstrip(": ")
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def click_options(cls: type, leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """Decorator: a flag for each field but those left out, which is None unless it is given.

    What is given is what :func:`replace_flags` takes. A mapping is a flag that can be repeated,
    `--dataset-options n_person=5000`; its values are read as TOML, or else as strings.

    Raises:
        ConfigError: two sections have a field of the same name.
    """
    options = [_option(leaf) for leaf in _unique_leaves(cls) if leaf.name not in leave_out]

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _option(leaf: Leaf) -> Callable[[Command], Command]:
    flag, hint, default = _flag(leaf.name), _optional(leaf.hint) or leaf.hint, leaf.default
    text = leaf.field.metadata.get("help", "")
    if default not in (None, "", {}, ()):
        off = "no-" if default is False else ""
        text += f"  [default: {off + flag if isinstance(default, bool) else default}]"
    arguments: Dict[str, Any] = {
        "default": None, "help": text, "cls": SectionOption, "section": " ".join(leaf.path[:-1])
    }  # fmt: skip
    names = leaf.field.metadata.get("registry") or leaf.field.metadata.get("choices")
    if names is not None:
        names = [*names, *leaf.field.metadata.get("also", ())]
        arguments["type"] = click.Choice(names, case_sensitive=False)
    elif _origin(hint) is dict:
        arguments.update(
            multiple=True, type=_Pair(), metavar="KEY=VALUE", callback=_pairs_to_mapping
        )
    elif _origin(hint) is tuple:
        arguments.update(multiple=True, type=hint.__args__[0], callback=_empty_to_none)
    elif hint is not bool:
        arguments["type"] = hint
    name = f"--{flag}/--no-{flag}" if hint is bool else f"--{flag}"
    return click.option(name, leaf.name, **arguments)


class _Pair(click.ParamType):  # type: ignore[type-arg]
    """KEY=VALUE to a pair."""

    name = "key=value"

    def convert(
        self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]
    ) -> Any:
        if not isinstance(value, str):
            return value
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        try:
            return key, tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return key, text


def _pairs_to_mapping(ctx: click.Context, param: click.Parameter, pairs: Any) -> Any:
    return dict(pairs) if pairs else None


def _empty_to_none(ctx: click.Context, param: click.Parameter, values: Any) -> Any:
    return values or None


def _flag(name: str) -> str:
    return name.replace("_", "-")
