"""What decides the value of each feature, as specs whose fingerprints name its folder; others may use every file."""
