"""The embedded simulator: vehicle, traffic and camera on the CPU."""
