"""OpenAI's wire format: routes under /v1, bodies in, choices and chunks out."""
