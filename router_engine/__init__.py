"""The machine: scheduler, KV cache, model, experts, mixtures, routers and kernels."""
