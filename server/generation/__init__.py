"""The one use case behind every API: a prompt under a mixture becomes an answer. No HTTP."""
