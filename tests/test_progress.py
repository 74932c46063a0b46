"""Progress is a bar in a terminal and lines in a log file."""

import sys

from dien_fast import progress
from dien_fast.progress import progress_bar, step, steps


def test_a_log_file_gets_a_line_now_and_then(monkeypatch, capsys):
    seconds = iter([0.0, 4.0, 11.0, 15.0, 26.5, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with progress_bar(5000, "epoch 1/2", "rows") as bar:
        for number in range(5):
            bar.set_postfix({"loss": str(number)})
            bar.update(1000)
    assert capsys.readouterr().err == (
        "epoch 1/2: 2,000 of 5,000 rows in 11 s, loss 1\nepoch 1/2: 4,000 of 5,000 rows in 26 s, loss 3\n"
    )


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(10, "scoring", "rows") as bar:
        bar.update(10)
    shown = capsys.readouterr().err
    assert "\rscoring: " in shown
    assert "/10.0" in shown


def test_steps_are_shown_where_they_are_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(progress._Lines, "seconds", 0.0)
    step()
    with steps(4, "reading", show=False):
        step()
    assert capsys.readouterr().err == ""
    with steps(4, "reading"):
        step()
        step()
    step()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["reading: 1 of 4 steps", "reading: 2 of 4 steps"]
