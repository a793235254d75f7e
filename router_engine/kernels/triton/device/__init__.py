"""The code that runs on the device: functions in Triton's language. The modules above launch them.

Importing this compiles nothing; a kernel is compiled at its first launch with new constants.
"""
