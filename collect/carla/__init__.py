"""The CARLA simulator: the client runs in a supervised child process."""
