"""The routes, one file a resource. A module holds a `router` of FastAPI and no logic."""
