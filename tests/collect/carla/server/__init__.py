"""A server that speaks CARLA 0.9.16's wire protocol, for tests with the real client.

It wraps the roads, the car and the camera of the built-in simulator. It must run in its own
process (`python -m avtd3.tests.collect.carla.server`), because the client holds the interpreter
lock while it waits for some answers. `avtd3.tests.collect.carla.launch` starts and ends such
processes.
"""
