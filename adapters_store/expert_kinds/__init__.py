"""Specs of the expert kinds: pure data of what an adapter holds, and what each kind checks of it.

The words of the equations: x_t is what a module reads for token t, w_t the weight of the adapter in
the token's mixture, g_t the gate of an expert there: an output of its layer's gating network, or 1
without one.
"""
