import runpy
import sys

import pytest

from eeutils.errors import StorageError, TrainingDivergedError, a_few, message_instead_of_traceback
from tools import demo, results


@pytest.mark.parametrize(("count", "listed"), [(1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4 and 1 more")])
def test_a_few_names_are_listed_and_the_rest_counted(count, listed):
    assert a_few(list(map(str, range(count)))) == listed


@message_instead_of_traceback()
def program(error=None):
    if error:
        raise error
    return "done"


@pytest.mark.parametrize("error", [ValueError("no such pool"), StorageError("full"), TrainingDivergedError("NaN")])
def test_a_program_ends_with_what_its_user_can_mend(error):
    with pytest.raises(SystemExit, match=f"error: {error}"):
        program(error)


def test_an_interrupted_program_ends_as_a_shell_expects():
    with pytest.raises(SystemExit) as end:
        program(KeyboardInterrupt())
    assert end.value.code == 130


def test_what_is_our_mistake_keeps_its_traceback():
    with pytest.raises(KeyError):
        program(KeyError("missing"))


def test_what_a_program_gives_back_goes_through_as_often_as_it_is_called():
    assert [program(), program()] == ["done", "done"]


@pytest.mark.parametrize("program", [demo, results])
def test_help_says_what_a_program_without_arguments_does_and_ends(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m {program.__name__} [-h]")
    assert program.__doc__.strip() in said


@pytest.mark.parametrize("program", [demo, results])
@pytest.mark.parametrize("argument", ["--quick", "now"])
def test_a_program_without_arguments_refuses_any(program, argument, capsys):
    with pytest.raises(SystemExit) as end:
        program.main([argument])
    assert end.value.code == 2
    assert f"unrecognized arguments: {argument}" in capsys.readouterr().err


@pytest.mark.parametrize("program", [demo, results])
def test_a_program_without_arguments_reads_its_command_line(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program.__file__, "--no"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(program.__file__, run_name="__main__")
    assert end.value.code == 2
