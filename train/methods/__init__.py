"""The methods, one module each, to be read next to its paper: what a student learns from and how."""
