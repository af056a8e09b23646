"""Stage two: train students from cached features, evaluate and compare them. Opens no source image, loads no ADM."""
