"""Bodies of requests and replies; shared by HTTP and the use cases behind it."""
