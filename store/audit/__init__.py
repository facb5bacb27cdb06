"""The audit: read datasets, and report what they hold and what is wrong with them."""
