"""Plan and engine to results: durable, counted once, each with its timing and its blame."""
