"""What scoring an image costs with each method: ``run.run_bench`` measures it, ``result`` is the form of the result."""
