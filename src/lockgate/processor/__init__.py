"""Rules over messages: from the broker, through schemas and SQL, into the buffer."""
