"""The CARLA world: the real client in a supervised child process."""
