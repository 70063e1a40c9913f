"""Pipeline parallelism: one program cut into one for each stage."""
