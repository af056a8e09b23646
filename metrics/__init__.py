"""What a detector's scores are worth; others use ``measures``, ``bootstrap``, ``per_generator``, ``calibration``. No torch."""
