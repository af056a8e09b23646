"""What it costs to judge one image by each method; others use ``run.run_bench``, and ``result`` to read its file."""
