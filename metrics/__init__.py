"""What a detector's scores are worth: measures, bootstrap intervals, results by generator, calibration. No torch."""
