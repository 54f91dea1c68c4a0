"""Machines and chroots run what README shows; here it is only looked for, for CI runs neither."""

from tests.vm import installing
from tests.vm.inside import checks
from tests.vm.results import IMPOSSIBLE, OK, Column, Result, table


def test_readme_has_the_commands_of_an_installation() -> None:
    commands = installing.install_commands()
    assert commands[0].startswith("sudo apt install ")
    assert any(command.endswith("pip install .") for command in commands)


def test_readme_has_a_unit_that_can_be_pointed_at_another_office() -> None:
    text = checks.unit_for_our_office(installing.readme())
    assert "\nType=notify\n" in text
    assert text.count("-r office 10.55.0.0/24\n") == 1


def test_a_table_has_a_column_for_each_system_and_a_row_for_each_fact_and_check() -> None:
    first = Column("a", {"kernel": "5.10"}, [Result("works", IMPOSSIBLE, "too | old", 1.0)])
    second = Column("b", {"kernel": "6.1"}, [Result("works", OK, "seen", 1.0)])
    assert table([first, second]).splitlines() == [
        "|  | a | b |",
        "| --- | --- | --- |",
        "| kernel | 5.10 | 6.1 |",
        "| works | **can't**: too \\| old | ok: seen |",
    ]
