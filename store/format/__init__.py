"""The bytes of dataset format 1: layout, metadata, manifest, codecs and shards."""
