"""The commands of ``avtd3``: their options, and the functions they call."""
