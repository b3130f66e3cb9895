"""What `uellm bench` runs: the same work through several engines, and what no engine could beat."""
