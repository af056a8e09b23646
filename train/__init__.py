"""Stage two: train students from cached features, evaluate and compare them. Opens no source image, loads no ADM."""

from .config import TrainConfig
from .evaluate import run_evaluation
from .loop import run_training
from .report import write_report

__all__ = ["TrainConfig", "run_evaluation", "run_training", "write_report"]
