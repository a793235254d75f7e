"""What MoA trains: experts of several kinds in every layer, each under a gate of its router."""
