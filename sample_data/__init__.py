"""Sample data shipped with the repository: a tiny model and the scripts that make it."""
