"""Labelled data sets: drawn from a model in parts, filtered, and written in one of several formats.

    counts.py     how many images of each class, and their order
    parts.py      the parts on disk; which part is drawn next
    drawing.py    requests the parts from one or several services
    conditions.py filters.py    which of the drawn images are kept
    formats.py    npz, idx, png, parquet, webdataset
    card.py       the data card

Image j of class c is image c * 2^32 + j of the seed, so a data set is a pure function of its settings: it does not
depend on interruptions or on which service drew which part.
"""


class DatasetError(Exception):
    """The data set cannot be drawn or written; the message says what to do."""
