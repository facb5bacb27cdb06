"""Audits of datasets: check the data, and summarise what they contain. Nothing is rendered here."""
