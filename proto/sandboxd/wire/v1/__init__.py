"""What the daemon's own processes say to each other, generated from the .proto files here."""
