"""Print what the tests that need no torch require, one requirement a line: all of pyproject.toml but what is left out here."""

import re
import tomllib
from pathlib import Path

LEFT_OUT = {
    *("torch", "torchvision"),  # gigabytes
    *(
        "bokeh",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "tensorboard",
        "timm",
        "diffusers",
    ),  # only what needs torch imports these
    *("axe-core-python", "build", "mypy", "pre-commit", "pytest-cov", "ruff"),  # tools of other checks
    "distil-cache",  # its extra for the documentation
}

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
name_of = {requirement: re.split(r"[^\w.-]", requirement)[0] for requirement in wanted}
assert set(name_of.values()) >= LEFT_OUT, "pyproject.toml does not name all that is left out"
print(*(requirement for requirement in wanted if name_of[requirement] not in LEFT_OUT), sep="\n")
