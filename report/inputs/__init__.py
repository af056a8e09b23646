"""What the report reads: run folders, their evaluations with all measures, the paper's figures, and the provenance."""
