"""Exchange datasets with other tools: export episodes to their layouts, and import from these."""
