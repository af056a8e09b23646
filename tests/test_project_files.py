"""What surrounds the code: workflows, the lock of CI, citation, release."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from distil_cache import __version__
from tool_module import load_tool

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_and_scripts_that_are_there_and_keeps_no_credentials(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for step in steps(workflow):
        said = step.get("run", "")
        assert set(re.findall(r"\bmake ([a-z-]+)", said)) <= targets
        for script in re.findall(r"\b(?:tools|benchmarks|\.ci)/\w+\.py", said):
            assert (ROOT / script).is_file(), script
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_the_workflows_test_every_supported_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    listed = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", name)}
    assert set(jobs["tests"]["strategy"]["matrix"]["python"]) == listed


def test_the_lock_of_ci_names_every_library_that_the_project_asks_for() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = {_normal(re.split(r"[\[<>=!~; ]", one)[0]) for group in groups for one in group}
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {_normal(line.partition("==")[0]) for line in lines if "==" in line}
    assert wanted - locked - {_normal(PROJECT["name"])} == set(), "run `make lock`"


def test_the_citation_and_the_changelog_have_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert [one["name"] for one in citation["authors"]] == [one["name"] for one in PROJECT["authors"]]
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_release_needs_its_version_everywhere_and_a_date(tmp_path: Path) -> None:
    check = load_tool("check_release")
    (tmp_path / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.0] - unreleased\n")
    assert check.problems("v1.2.0", tmp_path) == ["CHANGELOG.md: has no heading '## [1.2.0] - YYYY-MM-DD'."]
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.0] - 2027-01-31\n")
    assert check.problems("v1.2.0", tmp_path) == []
    assert len(check.problems("1.3", tmp_path)) == 4


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
