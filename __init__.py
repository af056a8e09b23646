"""distil-cache: the expensive features of DistilDIRE computed once, students trained from them many times."""

__version__ = "0.1.0"
