import pytest

from eeutils.errors import StorageError, TrainingDivergedError, a_few, message_instead_of_traceback


@pytest.mark.parametrize(("count", "listed"), [(1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4 and 1 more")])
def test_a_few_lists_five_names_and_counts_the_rest(count, listed):
    assert a_few(list(map(str, range(count)))) == listed


@message_instead_of_traceback()
def program(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "ends", "code"),
    [
        (StorageError("full"), SystemExit, "error: full"),
        (TrainingDivergedError("NaN"), SystemExit, "error: NaN"),
        (KeyboardInterrupt(), SystemExit, 130),
        (KeyError("a bug"), KeyError, None),
    ],
    ids=repr,
)
def test_message_instead_of_traceback_for_what_the_user_can_mend(error, ends, code):
    with pytest.raises(ends) as end:
        program(error)
    assert getattr(end.value, "code", None) == code
