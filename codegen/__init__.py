"""Program to plan to artifact: what is written down for the runtime, byte for byte reproducible."""
