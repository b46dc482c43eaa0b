"""Byte-pair encodings of others: as data, as a payload, at work, and in files of other tools."""
