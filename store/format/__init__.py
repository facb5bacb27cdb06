"""The bytes of the dataset format: layout, metadata, manifest, codecs and shards."""
