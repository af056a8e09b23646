"""The report's files for other programs, their provenance, and how they are put in place."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from distil_cache.errors import UserError
from distil_cache.report import Addition, Section, Table, write_report
from distil_cache.report.output.files import put_files
from distil_cache.report.output.latex import escaped, latex_document, latex_table
from patience import PATIENCE
from run_folders import rows, write_evaluation, write_run

FAKES = {"adm-a": 2.5, "adm-b": 0.8}
CONTROLS = Addition(
    "Controls & more", [Section("Controls", table=Table("Baselines.", ["a", "AP"], [["x\ny", "61.0"]]))]
)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs that fill every table: two seeds, and one without the distillation loss."""
    found = [
        write_run(tmp_path / "kd05"),
        write_run(tmp_path / "again", seed=1),
        write_run(tmp_path / "kd00", kd_weight=0.0),
        write_run(tmp_path / "cnn", method="cnndet"),
    ]
    for seed, run in enumerate(found):
        write_evaluation(run, rows(FAKES, seed=seed), dire=True, gallery=1)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One run with one evaluation."""
    folder = write_run(tmp_path / "kd05")
    write_evaluation(folder, rows(FAKES))
    return folder


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def table_of(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "tables" / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_second_report_is_the_same_byte_for_byte_but_for_its_date(runs, tmp_path):
    first = write_report(runs, tmp_path / "one", additions=[CONTROLS])
    second = write_report(runs, tmp_path / "two", additions=[CONTROLS])

    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].replace(first["created"].encode(), b"DATE") == two[name].replace(
            second["created"].encode(), b"DATE"
        ), name
    undated = {name for name in one if first["created"].encode() not in one[name]}
    assert undated == {name for name in one if name.endswith(".csv")} | {"scores.parquet"}


def test_the_files_that_the_content_names_are_there(runs, tmp_path):
    content = write_report(runs, tmp_path / "out")

    assert sorted(content["files"].values()) == [
        "report.html",
        "report.json",
        "report.md",
        "report.tex",
        "scores.parquet",
        "tables/tables.json",
    ]
    assert all((tmp_path / "out" / name).is_file() for name in content["files"].values())


def test_every_score_is_in_one_table_with_its_provenance(runs, tmp_path):
    content = write_report(runs, tmp_path / "out")

    table = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert table.num_rows == 4 * 100
    assert {"run", "dataset", "split", "key", "label", "generator", "family", "score"} <= set(table.column_names)
    own = [row for row in table.to_pylist() if row["run"] == "again"]
    expected = {(row["key"], row["label"]): row["score"] for row in rows(FAKES, seed=1)}
    assert {(row["key"], row["label"]): row["score"] for row in own} == pytest.approx(expected, abs=1e-6)
    origin = json.loads(table.schema.metadata[b"distil-cache"])
    assert origin == content["provenance"]


def test_the_provenance_names_revisions_fingerprints_configuration_and_versions(run, tmp_path):
    content = write_report([run], tmp_path / "out")

    found = content["provenance"]
    assert found["runs"][0]["datasets"] == [
        {"dataset": "photos", "revision": "abcdef0123456789", "build": "0123456789abcdef"}
    ]
    assert found["runs"][0]["fingerprints"] == {"image": "1" * 64, "eps": "2" * 64, "teacher": "3" * 64}
    assert found["runs"][0]["config"]["lr"] == 1e-4
    assert found["runs"][0]["versions"] == {"torch": "2.0"}
    assert found["evaluations"][0]["revision"] == "abcdef0123456789"
    assert found["evaluations"][0]["checkpoint"]["sha256"] == "4" * 64
    assert {"distil-cache", "python", "numpy", "scikit-learn"} <= found["software"].keys()
    assert json.loads((tmp_path / "out/tables/tables.json").read_text())["provenance"] == found
    for name in ("report.md", "report.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert "abcdef0123456789" in text
        assert "2" * 16 in text


def test_the_flat_table_of_results_holds_the_numbers_of_the_report(runs, tmp_path):
    content = write_report(runs, tmp_path / "out")

    found = table_of(tmp_path / "out", "results.csv")
    result = content["comparisons"][0]["results"][1]
    (row,) = [r for r in found if r["run"] == "again" and r["generator"] == "adm-b"]
    expected = next(one for one in result["generators"] if one["generator"] == "adm-b")
    assert float(row["average_precision"]) == expected["average_precision"]
    assert [float(row["auc_low"]), float(row["auc_high"])] == expected["auc_interval"]
    assert (row["dataset"], row["split"], row["transform"], row["seed"]) == ("photos", "test", "crop", "1")
    assert (row["real"], row["fake"], row["family"], row["seen_in_training"]) == ("40", "30", "diffusion", "False")
    assert row["calibrated_accuracy"] == row["paper_accuracy"] == ""
    (mean,) = [r for r in found if r["run"] == "again" and r["of"] == "mean over generators"]
    assert float(mean["brier"]) == result["mean"]["brier"]


def test_seeds_differences_and_mean_dire_have_flat_tables(runs, tmp_path):
    content = write_report(runs, tmp_path / "out")

    (seeds,) = [row for row in table_of(tmp_path / "out", "seeds.csv") if row["of"] == "mean over generators"]
    comparison = content["comparisons"][0]
    assert float(seeds["auc_spread"]) == comparison["over_seeds"][0]["mean"]["auc"]["spread"]
    differences = table_of(tmp_path / "out", "differences.csv")
    (one,) = [
        row
        for row in differences
        if row["kind"] == "distillation weight 0.5 against 0" and (row["generator"], row["measure"]) == ("adm-a", "auc")
    ]
    assert float(one["difference"]) == comparison["distillation"][0]["generators"]["adm-a"]["auc"]["difference"]
    assert {row["first_runs"] for row in differences if row["kind"] == "methods"} == {"kd05", "kd00"}  # common seeds
    dire = table_of(tmp_path / "out", "mean_dire.csv")
    assert [float(row["mean_dire"]) for row in dire] == [one["mean"] for one in comparison["mean_dire"]]


def test_tables_that_were_added_and_a_list_of_all_tables_are_written(run, tmp_path):
    write_report([run], tmp_path / "out", additions=[CONTROLS])

    assert table_of(tmp_path / "out", "controls-more-1.csv") == [{"a": "x; y", "AP": "61.0"}]
    listed = json.loads((tmp_path / "out/tables/tables.json").read_text())["tables"]
    assert listed.keys() == {"results.csv", "controls-more-1.csv"}
    assert listed["controls-more-1.csv"] == {"about": "Controls", "rows": 1, "columns": ["a", "AP"]}
    assert set(listed["results.csv"]["columns"]) == set(table_of(tmp_path / "out", "results.csv")[0])


def test_tables_of_an_earlier_report_do_not_stay_and_other_files_do(runs, tmp_path):
    write_report(runs, tmp_path / "out", additions=[CONTROLS])
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    (tmp_path / "out" / "tables" / "mine.csv").write_text("mine")

    write_report(runs[:1], tmp_path / "out")

    left = set(files_of(tmp_path / "out"))
    assert {"thesis.txt", "tables/mine.csv", "tables/results.csv", "tables/mean_dire.csv"} <= left
    assert not left & {"tables/controls-more-1.csv", "tables/seeds.csv", "tables/differences.csv"}
    assert not [name for name in left if ".tmp" in name]


def test_a_report_that_fails_leaves_the_one_before_it(run, tmp_path):
    write_report([run], tmp_path / "out")
    before = files_of(tmp_path / "out")
    files = {"report.html": "new", "scores.parquet": _fails}

    with pytest.raises(UserError, match="No space left on device"):
        put_files(tmp_path / "out", files)

    assert files_of(tmp_path / "out") == before
    with pytest.raises(UserError, match="cannot be written"):
        put_files(tmp_path / "fresh", files)
    assert not (tmp_path / "fresh").exists()


def _fails(path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_latex_tables_are_balanced_and_every_row_has_the_cells_of_its_head(runs, tmp_path):
    write_report(runs, tmp_path / "out", additions=[CONTROLS])

    text = (tmp_path / "out" / "report.tex").read_text(encoding="utf-8")
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, flags=re.DOTALL)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert len(tables) == page.count("<caption>") >= 6
    for table in tables:
        check_structure(table)


def test_names_cannot_become_commands_of_latex():
    evil = 'a_b & 50% \\input{x} $y$ #1 ~^ {z} <|> "q" −±–… \x1b[0m\u202e'
    table = Table(f"{evil}\n{evil}", [evil, "b"], [[f"[{evil}", f"[x]\n*{evil}"], ["*", "[1]"]], note=evil, sums=1)

    text = latex_table(table, 1)

    check_structure(text)
    shown = escaped(evil)
    plain = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}|\\dots\{\}|\$\\pm\$|\$-\$", "", shown)
    assert not set(plain) & set("\\{}$&#^_%~<>|\x1b\u202e")
    document = latex_document([table], [f"head\n\\input{{x}} {evil}"])
    assert document.splitlines()[0].startswith("% head \\input")


def check_structure(table: str) -> None:
    """Check that braces and environments are balanced, every row has the right number of cells, and text is escaped."""
    bare = re.sub(r"\\[&%$#_{}]", "", table)
    assert "%" not in bare
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", bare):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", bare)
    assert columns is not None
    body = bare[columns.end() : bare.index(r"\end{tabular}")]
    lines = [line for line in body.strip().split("\n") if line not in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert len(lines) >= 2
    for line in lines:
        assert line.endswith(r" \\")
        assert line.count(" & ") == len(columns[1]) - 1 == line.count("&")
        assert line[0] in "{\\"  # a bracket or star there would be an option of the line's break before it


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_tables_compile(runs, tmp_path):
    write_report(runs, tmp_path / "out")
    draft = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{out/report.tex}\end{document}"
    (tmp_path / "draft.tex").write_text(draft)

    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "draft.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert done.returncode == 0, done.stdout[-2000:]


def test_a_report_loads_no_torch(run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from distil_cache.report import write_report; "
        f"write_report([Path({str(run)!r})], Path({str(tmp_path / 'out')!r})); "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('torch', 'torchvision')))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)

    assert done.stdout.strip() == "[]"
