import pytest

from eeutils.errors import StorageError, TrainingDivergedError, a_few, message_instead_of_traceback


@pytest.mark.parametrize(("count", "listed"), [(1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4 and 1 more")])
def test_a_few_lists_five_names_and_counts_the_rest(count, listed):
    assert a_few(list(map(str, range(count)))) == listed


@message_instead_of_traceback()
def program(error=None):
    if error:
        raise error
    return "done"


@pytest.mark.parametrize("error", [ValueError("no such pool"), StorageError("full"), TrainingDivergedError("NaN")])
def test_message_instead_of_traceback_for_what_the_user_can_mend(error):
    with pytest.raises(SystemExit, match=f"error: {error}"):
        program(error)


def test_message_instead_of_traceback_ends_quietly_if_interrupted():
    with pytest.raises(SystemExit) as end:
        program(KeyboardInterrupt())
    assert end.value.code == 130


def test_message_instead_of_traceback_keeps_the_traceback_of_a_bug():
    with pytest.raises(KeyError):
        program(KeyError("missing"))


def test_message_instead_of_traceback_passes_results_through():
    assert [program(), program()] == ["done", "done"]
