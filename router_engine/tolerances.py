"""The table of tolerances: how far two ways to compute the same answer may be apart."""

from __future__ import annotations

import torch

# The largest difference of a log probability, relative to the largest of its token. In fp32 sums
# are in another order; in formats of 16 bits each layer rounds.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
