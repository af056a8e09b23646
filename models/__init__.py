"""Image networks and weights files: what both stages need of torch modules. It knows neither the cache nor a stage."""
