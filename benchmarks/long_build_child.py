"""The process that ``long_build.py`` watches: a build that notes when its first batch was done, and its memory."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.progress import Silent

PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch(Silent):
    """A progress that keeps the time of the first ADM calls and the resident memory at each tenth of them."""

    def __init__(self) -> None:
        self.first_batch_at = 0.0
        self.cpu_before_work = 0.0
        self.resident: list[int] = []
        self._total, self._done = 1, 0

    def start(self, stage: str, total: int) -> None:
        """Note how many ADM calls there will be."""
        if stage == "ADM calls":
            self._total = total
            self.cpu_before_work = time.process_time()

    def advance(self, stage: str, units: int) -> None:
        """Note the first batch, and the memory at each tenth."""
        if stage != "ADM calls":
            return
        self.first_batch_at = self.first_batch_at or time.time()
        self._done += units
        if self._done * 10 // self._total > len(self.resident) - 1:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.append(pages * PAGE // 2**20)


def main() -> None:
    sources, cache, features, steps, batch = sys.argv[1:]
    watch = Watch()
    config = BuildConfig.checked(
        sources=(Path(sources),), cache=Path(cache), dataset="benchmark", adm="demo", steps=steps, features=(features,),
        batch_size=int(batch), device="cpu", teacher="efficientnet_lite0", train_size=64,
    )  # fmt: skip
    run_build(config, watch)
    print(json.dumps({"cpu": time.process_time(), **{k: v for k, v in vars(watch).items() if not k.startswith("_")}}))


if __name__ == "__main__":
    main()
