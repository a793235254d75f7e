"""The size of a tile of rank rows, for whoever plans with it: no Triton is needed to know it."""

TILE_ROWS = 16  # the least that tensor cores take
