"""Turn tables of video clips into WebDataset shards, on Dask."""

__version__ = "0.1.0"
