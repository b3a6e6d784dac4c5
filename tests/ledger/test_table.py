import pytest
from benchmarks import table
from benchmarks.common import Figure, write_results
from benchmarks.table import BEGIN, END, Row, insert, load_rows, main, render
from benchmarks.targets import load_targets

ROWS = [Row("Digits, steps", "race", "steps ratio"), Row("Never run", "nothing", "x"), Row("Accuracy", "race", "best")]


@pytest.fixture
def folder(tmp_path):
    figures = [Figure("steps ratio", 0.4321987, "x", (0.4, 0.5)), Figure("best", 97.5, "%")]
    write_results("race", figures, command="python -m benchmarks.race", threads=1, folder=tmp_path / "results")
    return tmp_path / "results"


def test_the_table_holds_the_figures_their_spread_and_command(folder):
    assert render(ROWS, folder=folder).splitlines()[2:] == [
        "| Digits, steps | 0.4322 x | 0.4 to 0.5 | `python -m benchmarks.race` |",
        "| Accuracy | 97.5 % |  | `python -m benchmarks.race` |",
    ]


def test_a_figure_that_the_file_lacks_is_named(folder):
    with pytest.raises(KeyError, match="holds no figure 'seconds'"):
        render([Row("t", "race", "seconds")], folder=folder)


def test_insert_keeps_what_surrounds_the_markers():
    document = f"# Title\n{BEGIN}\nold\n{END}\nafter\n"
    assert insert(document, "new") == f"# Title\n{BEGIN}\nnew\n{END}\nafter\n"
    assert insert(insert(document, "new"), "new") == insert(document, "new")


@pytest.mark.parametrize("document", ["no marker", BEGIN, f"{BEGIN}{END}{BEGIN}"])
def test_a_document_without_both_markers_is_refused(document):
    with pytest.raises(ValueError, match="once each"):
        insert(document, "new")


def test_check_notices_a_stale_table_and_writing_cures_it(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "load_rows", lambda: ROWS)
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{BEGIN}\n{END}\n")
    assert main(["--check"], readme=readme, folder=folder) == 1
    assert "make readme" in capsys.readouterr().err
    assert "0.4322" not in readme.read_text()
    assert main([], readme=readme, folder=folder) == 0
    assert "0.4322 x" in readme.read_text()
    assert main(["--check"], readme=readme, folder=folder) == 0


def test_readme_entries_have_distinct_words_and_a_result_file_that_a_target_or_benchmark_names():
    rows = load_rows()
    assert len({row.text for row in rows}) == len(rows) > 0
    assert {row.result for row in rows} <= {target.result for target in load_targets()}


def test_readme_shows_the_result_files_as_they_are():
    assert main(["--check"]) == 0, "run `make readme`"
