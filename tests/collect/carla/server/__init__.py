"""A server that speaks CARLA 0.9.16's wire protocol, for tests with the real client.

It wraps the road world: its roads, its car, its camera. Run it as a process of its own with
`python -m avtd3.tests.collect.carla.server`, which it must be: the client keeps
the interpreter lock while it waits for some answers. `avtd3.tests.collect.carla.launch` starts
and ends such processes.
"""
