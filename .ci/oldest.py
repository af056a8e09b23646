"""Print the oldest versions that pyproject.toml allows as constraints for pip, one a line: what the program itself needs.

The tools of the tests are in their newest versions. s3fs and gcsfs ask for an fsspec of their own month, which is not
the oldest, so the tests with an object store over the network are left out; install them without this list to run those.
"""

import re
import tomllib
from pathlib import Path

EXTRAS = ("cluster", "demo", "video")

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
needed = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
for requirement in needed:
    name, _, version = re.fullmatch(r"([\w.-]+)(>=|==)([\w.]+)", requirement).groups()
    print(f"{name}=={version}")
