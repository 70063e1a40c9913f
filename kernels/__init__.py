"""Hand-tuned kernels, a family a file, and the catalogue through which the compiler knows them."""
