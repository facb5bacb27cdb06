"""Episodes as people look at them: in a terminal, on contact sheets, as films."""
