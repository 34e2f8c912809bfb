import runpy
import sys

import pytest

from tools import demo, results


@pytest.mark.parametrize("program", [demo, results])
def test_refuse_arguments_offers_help(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m {program.__name__} [-h]")
    assert program.__doc__.strip() in said


@pytest.mark.parametrize("program", [demo, results])
@pytest.mark.parametrize("argument", ["--quick", "now"])
def test_refuse_arguments_refuses_any(program, argument, capsys):
    with pytest.raises(SystemExit) as end:
        program.main([argument])
    assert end.value.code == 2
    assert f"unrecognized arguments: {argument}" in capsys.readouterr().err


@pytest.mark.parametrize("program", [demo, results])
def test_refuse_arguments_reads_the_command_line(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program.__file__, "--no"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(program.__file__, run_name="__main__")
    assert end.value.code == 2
