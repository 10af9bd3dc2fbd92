"""The gRPC services: thin, typed adaptors from messages to the daemon's parts."""
