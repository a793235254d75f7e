"""The front: what people import and type. Everything is imported when it is used."""
