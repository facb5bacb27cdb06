"""Everything avtd3 shows: HTML pages, charts, text, contact sheets and films."""
