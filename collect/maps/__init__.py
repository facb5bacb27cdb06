"""OpenDRIVE maps: networks, routes, scenarios and rasters, shared by every driving simulator."""
