"""Who may: authorities that the broker asks through its ports."""
