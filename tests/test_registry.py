"""A registry knows what it holds, and says so when it is asked for something else."""

from __future__ import annotations

import pytest

from besskge_core.registry import Registry


@pytest.fixture
def colours():
    made = Registry("colour")
    for name in ("red", "green"):
        made.register(name)(name.upper())
    return made


def test_names_are_found_in_any_case(colours):
    assert colours["red"] == colours["Red"] == "RED"
    assert "GREEN" in colours and "blue" not in colours


def test_names_come_in_order(colours):
    assert list(colours) == ["green", "red"]


def test_what_is_registered_stays_what_it_was(colours):
    @colours.register("blue")
    def blue():
        return 3

    assert blue() == 3 and colours["blue"] is blue


def test_a_name_is_taken_once(colours):
    with pytest.raises(ValueError, match="colour 'red' is registered already"):
        colours.register("red")("other")
    assert colours["red"] == "RED"


def test_an_unknown_name_lists_the_known_ones(colours):
    message = (
        r"unknown colour 'gren'; expected one of \['green', 'red'\] \(did you mean 'green'\?\)$"
    )
    with pytest.raises(ValueError, match=message):
        colours["gren"]
    with pytest.raises(ValueError, match=r"unknown colour 'xyz'; expected one of .*'red'\]$"):
        colours["xyz"]
