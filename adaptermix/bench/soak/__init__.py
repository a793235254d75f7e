"""Mixed traffic for a long time, while processes die: is every answer right, every end clean?"""
