"""What the report compares: seeds, methods, perturbed images; the rest of the report may use both files."""
