"""avtd3: an offline-first data pipeline for end-to-end driving policies."""
