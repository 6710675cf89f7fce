"""What pieces of work cost, in tokens, FLOPs, bytes and time, before they are run."""
