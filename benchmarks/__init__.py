"""What `make bench` measures. Each module prints a table, then one JSON line."""
