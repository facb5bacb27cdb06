"""Episodes on disk: spec, segments, datasets, and the sampler that reads them."""
