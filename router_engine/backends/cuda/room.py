"""The most that one step may hold, for its tables and for the plan of a GPU's memory.

The plan is made on any machine, so nothing here needs Triton.
"""

SLOTS = 4096  # adapters in the table
MAX_COLUMNS = 1024  # adapters of one step
