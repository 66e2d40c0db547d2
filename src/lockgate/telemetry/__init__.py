"""What the gateway says about itself: log lines, status sockets."""
