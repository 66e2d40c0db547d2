"""What goes wrong in practice, found and explained. It only reads, and may talk to the broker as a client does."""
