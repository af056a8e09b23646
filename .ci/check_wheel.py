"""Run outside the checkout, against the installed wheel: import every module, open every data file.

The wheel is installed without extras, so only modules that one of them is for may lack its library.
"""

import importlib
import importlib.resources
import pkgutil
from pathlib import Path

import distil_cache

EXTRAS = {"distributed": "distil_cache.pipeline.cluster."}

modules = [found.name for found in pkgutil.walk_packages(distil_cache.__path__, "distil_cache.")]
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS or not name.startswith(EXTRAS[error.name]):
            raise

installed = Path(distil_cache.__file__).parent
assert "site-packages" in installed.parts, f"imported from {installed}, not from the wheel"
data = [path for path in installed.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
for path in data:
    assert path.name == "py.typed" or path.read_bytes(), f"{path} is empty"
for wanted in (
    "py.typed",
    "report.html.j2",
    "page.css.j2",
    "page.js",
    "paper.json",
    "adm-demo.safetensors",
    "adm-demo-b.safetensors",
):
    assert any(path.name == wanted for path in data), f"the wheel lacks {wanted}"
print(f"{len(modules)} modules import, {len(data)} data files open")
