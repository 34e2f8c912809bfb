import textwrap

import eeutils.training


def test_the_loop_that_the_documentation_shows_learns_and_leaves_a_history():
    lines = eeutils.training.__doc__.splitlines()
    names = {}
    exec(textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    "))), names)
    frame = names["history"].frame()
    assert frame["train_loss"].is_monotonic_decreasing
    assert frame["val_accuracy_exit2"].iloc[-1] > 0.5
    assert not names["net"].training
