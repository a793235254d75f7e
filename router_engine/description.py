"""The engine's description of itself, which servers and clients ask for once."""

from __future__ import annotations

from router_engine.assembly import ComputingParts
from router_engine.info import EngineInfo
from router_engine.model.probe import probe_digest
from router_engine.routing import RunningRouters


def describe(parts: ComputingParts, routing: RunningRouters) -> EngineInfo:
    """What an engine runs, and in what memory."""
    loaded, config, base = parts.loaded, parts.config, parts.base
    wanted = config.scheduler.max_model_len
    return EngineInfo(
        base=base,
        max_model_len=min(wanted or loaded.max_model_len, loaded.max_model_len),
        vocab_size=int(loaded.model.get_input_embeddings().weight.shape[0]),
        eos_token_ids=loaded.eos_token_ids,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        token_routers=routing.names,
        layer_routers=routing.layer_names,
        hidden_size=base.hidden_size,
        probe=probe_digest(loaded.model, loaded.probe_layer, loaded.quantization),
        kv_blocks=parts.cache.num_blocks,
        kv_block_size=config.cache.block_size,
        memory=parts.memory,
    )
