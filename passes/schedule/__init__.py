"""Pipeline schedules: generators, the verifier, the simulator, and the cut into stages by cost."""
