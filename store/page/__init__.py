"""An audit's report as one HTML page."""
