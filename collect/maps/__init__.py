"""OpenDRIVE maps: networks, routes, scenarios and rasters, shared by both simulators."""
