"""segpt: how good can a language model be in N bytes?"""

__version__ = "0.1.0"
