"""Faust for our stages: a whole fetch of a partition as one message, and commits only of what is safe."""
