"""Score cached features with an exported student, on the CPU and without torch.

    distil-cache checkpoint export runs/mine student.onnx
    python examples/score_onnx.py student.onnx cache mine test

It prints the score of each image (near 1 for generated), its path and the verdict. Needs onnxruntime.
"""

from __future__ import annotations

import sys

import distil_cache as dc
import onnxruntime

BATCH = 64


def main(model: str, cache: str, dataset: str, split: str) -> None:
    """Print a line for each image of a split."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    threshold = float(properties["distil_cache.threshold"] or 0.5)
    rows = dc.open(cache).dataset(dataset).split(split)
    features = {one.name: (rows.feature(one.name), one.type) for one in session.get_inputs()}
    for start in range(0, len(rows), BATCH):
        keys = rows.keys[start : start + BATCH]
        batch = {
            name: feature.numpy(keys).astype("uint8" if kind == "tensor(uint8)" else "float32")
            for name, (feature, kind) in features.items()
        }
        paths = rows.table["path"].slice(start, BATCH).to_pylist()
        for score, path in zip(session.run(["score"], batch)[0], paths, strict=True):
            print(f"{score:.4f}  {path!a}  {'generated' if score > threshold else 'real'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
