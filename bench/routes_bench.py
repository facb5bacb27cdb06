"""Which routes of a scenario file can be planned on their .xodr files, and how long that takes.

    python bench/routes_bench.py routes.xml

Of each route: metres planned, metres from waypoint to waypoint as the crow flies, the tightest
curve, the largest distance of a waypoint from the route, seconds. Routes whose roads are not at
hand (a town without its .xodr file beside the scenario file) are counted and skipped.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import flatten, read_opendrive
from avtd3.collect.maps.planner import plan_through
from avtd3.collect.maps.scenarios import Scenario, read_scenarios
from avtd3.store.errors import RoadError


def plan(network: RoadNetwork, scenario: Scenario) -> dict[str, Any]:
    """One route's row."""
    began_s = time.perf_counter()
    row: dict[str, Any] = {"route": scenario.number, "town": network.name}
    try:
        route = plan_through(network, scenario.waypoints).route
    except RoadError as error:
        return {**row, "refused": str(error)}
    away = max(abs(route.project(*point).lateral_m) for point in scenario.waypoints)
    crow = sum(math.dist(*pair) for pair in itertools.pairwise(scenario.waypoints))
    return {
        **row,
        "length_m": round(route.length_m),
        "crow_m": round(crow),
        "tightest_radius_m": round(1.0 / max(float(np.abs(route.curvature).max()), 1e-6), 1),
        "farthest_waypoint_m": round(away, 1),
        "seconds": round(time.perf_counter() - began_s, 2),
    }


def main() -> None:
    """Print a line a route, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    networks: dict[str, RoadNetwork] = {}
    rows, skipped = [], 0
    for scenario in read_scenarios(arguments.file):
        path = scenario.xodr or scenario.town
        if not scenario.waypoints or not Path(path).is_file():
            skipped += 1
            continue
        if path not in networks:
            text, _ = flatten(read_opendrive(path))
            networks[path] = RoadNetwork.from_opendrive(Path(path).stem, text)
        rows.append(plan(networks[path], scenario))
    if arguments.json:
        print(json.dumps({"rows": rows, "skipped": skipped}, indent=2))
        return
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    refused = sum("refused" in row for row in rows)
    print(f"{len(rows) - refused} of {len(rows)} routes planned; {skipped} skipped")


if __name__ == "__main__":
    main()
