"""The model of MoA: experts of several kinds in each layer, each under its router's gate."""
