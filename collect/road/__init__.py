"""The embedded world: OpenDRIVE networks, a car, traffic and a camera, all on the CPU."""
