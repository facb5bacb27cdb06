"""The built-in simulator: vehicle, traffic and camera on the CPU."""
