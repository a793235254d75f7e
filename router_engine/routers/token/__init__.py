"""Routers that renew weights while the text grows."""
