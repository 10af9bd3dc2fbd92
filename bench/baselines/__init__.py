"""What one would use instead of sandboxd, or what is below it."""
