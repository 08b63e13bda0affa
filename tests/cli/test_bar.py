"""Progress without a terminal: nothing for what is quick, then a line now and then."""

from lmsd.cli import bar as progress


def test_without_a_terminal_a_line_now_and_then(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Bar() as bar:
        for now in (100.5, 101.9, 102.1, 110.0, 122.2, 130.0):
            bar.update(int(now), 1_000, "decoding")
    assert capsys.readouterr().err == "decoding  102/1,000\ndecoding  122/1,000\n"
