"""A configuration is the same whichever door it came through, and bad values say where they are."""

from __future__ import annotations

import dataclasses
import json
import math
from ast import literal_eval
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

import click
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from besskge_core.config import (
    SectionCommand,
    click_options,
    dump,
    from_mapping,
    load,
    replace_flags,
    to_mapping,
)
from besskge_core.errors import ConfigError
from besskge_core.registry import Registry
from besskge_core.training import TrainingConfig

SHAPES: Registry[int] = Registry("shape")
SHAPES.register("round")(1)
SHAPES.register("square")(2)


@dataclass(frozen=True)
class Inner:
    width: int = field(default=3, metadata={"help": "how wide"})
    rate: float = field(default=0.5, metadata={"help": "how fast"})
    share: Optional[float] = field(default=None, metadata={"help": "how much"})
    many: bool = field(default=True, metadata={"help": "how many"})
    few: bool = False
    sizes: Tuple[int, ...] = (1, 2)
    extras: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    name: str = field(default="x", metadata={"help": "what it is called"})
    shape: str = field(default="round", metadata={"help": "its form", "registry": SHAPES})
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        SHAPES[self.shape]
        if self.inner.width == 13:
            raise ConfigError("width 13 is unlucky")


FULL = Outer("näm\te \"q\" \\ \x7f\x01", "square", Inner(
    7, 1e-3, 0.1, False, True, (), {"a b": 1, "c": [1.5, "x", True], "d": {"e": {"f": 2.0}}}
))  # fmt: skip


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [Outer(), FULL, TrainingConfig()], ids=["plain", "full", "real"])
def test_what_is_dumped_is_loaded_again(tmp_path, config):
    dump(config, tmp_path / "c.toml")
    assert load(type(config), tmp_path / "c.toml") == config


texts = st.text(st.characters(blacklist_categories=["Cs"]))
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=6,
)


@given(texts, st.floats(allow_nan=False), st.dictionaries(texts, values))
def test_any_value_survives_toml_to_the_last_bit(tmp_path_factory, name, rate, extras):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    config = Outer(name, inner=Inner(rate=rate, extras=extras))
    dump(config, path)
    assert repr(load(Outer, path)) == repr(config)  # repr tells 0.0 from -0.0 and 1 from 1.0


def test_none_is_left_out_of_files(tmp_path):
    dump(Outer(), tmp_path / "c.toml")
    assert "share" not in (tmp_path / "c.toml").read_text()
    assert "share" not in to_mapping(Outer())["inner"]


@pytest.mark.parametrize("value", [None, object(), {1, 2}], ids=["none", "object", "set"])
def test_what_toml_cannot_say_is_refused(tmp_path, value):
    config = Outer(inner=Inner(extras={"a": value}))
    with pytest.raises(ConfigError, match=r"inner\.extras holds .*, which TOML cannot say"):
        dump(config, tmp_path / "c.toml")


def test_none_in_the_place_of_a_default_is_refused_by_toml(tmp_path):
    @dataclass(frozen=True)
    class Changed:
        share: Optional[float] = 0.5

    with pytest.raises(ConfigError, match="share is None, which TOML cannot say"):
        dump(Changed(None), tmp_path / "c.toml")


def test_toml_yaml_and_json_say_the_same(tmp_path):
    config = dataclasses.replace(FULL, name="plain")
    dump(config, tmp_path / "c.toml")
    (tmp_path / "c.json").write_text(json.dumps(to_mapping(config)))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(to_mapping(config)))
    (tmp_path / "c.yml").write_text(yaml.safe_dump(to_mapping(config)))
    for ending in ("toml", "json", "yaml", "yml"):
        assert load(Outer, tmp_path / f"c.{ending}") == config


def test_an_empty_file_is_the_default(tmp_path):
    for name in ("c.toml", "c.yaml"):
        (tmp_path / name).write_text("")
        assert load(Outer, tmp_path / name) == Outer()


BAD_FILES = {
    "c.ini": ("", r"c\.ini: expected a file that ends in \.toml, \.yaml, \.yml, \.json"),
    "c.toml": ("name = ", r"c\.toml: cannot be read as toml: "),
    "c.json": ("{", r"c\.json: cannot be read as json: "),
    "c.yaml": ("a: [", r"c\.yaml: cannot be read as yaml: "),
    "d.yaml": ("- a\n", r"d\.yaml: content is \['a'\] \(list\), expected a table of keys"),
    "d.toml": ("[inner]\nwidht = 3", r"d\.toml: unknown key 'widht' in \[inner\] \(did you mean"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, name):
    text, message = BAD_FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(Outer, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load(Outer, tmp_path / "none.toml")


# -- mappings --------------------------------------------------------------------------------------

BAD = {
    "near": ({"inner": {"widht": 1}}, r"f: unknown key 'widht' in \[inner\] .did you mean 'width'"),
    "section": ({"width": 1}, r"f: unknown key 'width'; it belongs in \[inner\]"),
    "far": ({"zzz": 1}, r"f: unknown key 'zzz'; expected some of \['inner', 'name', 'shape'\]"),
    "not a table": ({"inner": 3}, r"f: inner is 3 \(int\), expected a table of keys"),
    "word": ({"inner": {"width": "four"}}, r"inner\.width is 'four' \(str\), expected a whole"),
    "fraction": ({"inner": {"width": 1.5}}, r"inner\.width is 1\.5 \(float\), expected a whole"),
    "bool": ({"inner": {"width": True}}, r"inner\.width is True \(bool\), expected a whole number"),
    "rate": ({"inner": {"rate": "fast"}}, r"inner\.rate is 'fast' \(str\), expected a number"),
    "bool rate": ({"inner": {"rate": True}}, r"inner\.rate is True \(bool\), expected a number"),
    "flag": ({"inner": {"many": 1}}, r"inner\.many is 1 \(int\), expected true or false"),
    "text": ({"name": 3}, r"f: name is 3 \(int\), expected a string"),
    "none": ({"name": None}, r"f: name is None \(NoneType\), expected a string"),
    "list": ({"inner": {"sizes": 3}}, r"inner\.sizes is 3 \(int\), expected a list of a whole"),
    "item": ({"inner": {"sizes": [1, "x"]}}, r"inner\.sizes\[1\] is 'x' \(str\), expected a whole"),
    "table": ({"inner": {"extras": []}}, r"inner\.extras is \[\] \(list\), expected a table"),
    "table key": ({"inner": {"extras": {1: 2}}}, r"inner\.extras has the key 1 \(int\)"),
    "registry": ({"shape": "rond"}, r"f: unknown shape 'rond'.*did you mean 'round'"),
    "own check": ({"inner": {"width": 13}}, "f: width 13 is unlucky"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_named_with_source_path_type_and_value(case):
    mapping, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, mapping, source="f")


def test_a_field_without_a_default_must_be_given():
    @dataclass(frozen=True)
    class Needs:
        name: str

    with pytest.raises(ConfigError, match="missing 1 required positional argument: 'name'"):
        from_mapping(Needs, {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rate": 2}, Inner(rate=2.0)),
        ({"rate": "1e-3"}, Inner(rate=1e-3)),  # YAML reads 1e-3 as a string
        ({"width": 4.0}, Inner(width=4)),
        ({"width": "-4"}, Inner(width=-4)),
        ({"many": "False"}, Inner(many=False)),
        ({"sizes": ["3", 4.0]}, Inner(sizes=(3, 4))),
        ({"share": None}, Inner()),
        ({"share": "0.5"}, Inner(share=0.5)),
    ],
)
def test_values_become_the_type_of_their_field(given, expected):
    config = from_mapping(Inner, given)
    assert repr(config) == repr(expected)


def test_a_mapping_and_back_is_the_same():
    assert from_mapping(Outer, to_mapping(FULL)) == FULL


# -- flags -----------------------------------------------------------------------------------------


def test_flags_replace_fields_of_any_section_and_add_to_mappings():
    config = replace_flags(FULL, {"width": 9, "name": "new", "extras": {"c": 0}})
    assert (config.inner.width, config.name, config.shape) == (9, "new", "square")
    assert config.inner.extras == {**FULL.inner.extras, "c": 0}
    assert FULL.inner.width == 7


def test_flags_can_set_none_and_keep_it():
    assert replace_flags(FULL, {"share": None}).inner.share is None
    assert replace_flags(Outer(), {"width": 4}).inner.share is None


def test_an_unknown_flag_is_refused():
    with pytest.raises(ConfigError, match=r"unknown option 'widht' \(did you mean 'width'\?\)"):
        replace_flags(Outer(), {"widht": 1})


def test_fields_of_the_same_name_cannot_be_flags():
    @dataclass(frozen=True)
    class Twice:
        width: int = 1
        inner: Inner = field(default_factory=Inner)

    with pytest.raises(ConfigError, match=r"width and inner\.width would be the same flag --width"):
        click_options(Twice)


@pytest.fixture
def flags():
    """Run a command with these arguments; what it was given, without None."""

    @click.command(cls=SectionCommand)
    @click_options(Outer)
    def command(**given: Any) -> None:
        click.echo(repr({name: value for name, value in given.items() if value is not None}))

    return lambda *arguments: CliRunner().invoke(command, arguments)


def test_flags_not_given_are_none(flags):
    assert flags().output == "{}\n"


def test_flags_have_the_types_of_their_fields(flags):
    found = flags("--width", "4", "--rate", "1e-3", "--share", "2", "--no-many", "--few",
                  "--sizes", "3", "--sizes", "4", "--shape", "SQUARE")  # fmt: skip
    assert literal_eval(found.output) == {
        "width": 4, "rate": 1e-3, "share": 2.0, "many": False, "few": True, "sizes": (3, 4),
        "shape": "square",
    }  # fmt: skip
    assert replace_flags(Outer(), literal_eval(found.output)).inner.sizes == (3, 4)


def test_a_mapping_is_a_flag_of_pairs(flags):
    found = flags("--extras", "n=5", "--extras", "x=a=b", "--extras", "y=[1, 2.5]")
    assert literal_eval(found.output) == {"extras": {"n": 5, "x": "a=b", "y": [1, 2.5]}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--extras", "n"), "'n' is not of the form KEY=VALUE"),
        (("--width", "x"), "'x' is not a valid int"),
        (("--shape", "oval"), "'oval' is not one of 'round', 'square'"),
        (("--inner.width", "3"), "No such option"),
    ],
)
def test_bad_flags_are_refused(flags, arguments, message):
    found = flags(*arguments)
    assert found.exit_code == 2
    assert message in found.output


def test_help_lists_flags_by_section_with_defaults_and_choices(flags):
    text = " ".join(flags("--help").output.split())
    assert "Options: inner: --width INTEGER how wide [default: 3]" in text
    assert "--shape [round|square] its form [default: round]" in text
    assert "--many / --no-many how many [default: many]" in text
    assert "--share FLOAT how much --many" in text  # no default to show


def test_every_field_of_a_training_run_is_a_flag_with_help():
    @click.command()
    @click_options(TrainingConfig)
    def command(**flags: Any) -> None:
        pass

    sections = (getattr(TrainingConfig(), section) for section in to_mapping(TrainingConfig()))
    fields = {leaf.name for section in sections for leaf in dataclasses.fields(section)}
    assert fields == {parameter.name for parameter in command.params}
    assert all(parameter.help for parameter in command.params)


def test_nan_is_read_back_as_nan(tmp_path):
    dump(Outer(inner=Inner(rate=math.nan)), tmp_path / "c.toml")
    assert math.isnan(load(Outer, tmp_path / "c.toml").inner.rate)
