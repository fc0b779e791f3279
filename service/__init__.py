"""The HTTP service: loads weights and generates samples on request, with the rows of all requests in shared batches."""

import importlib.metadata

VERSION = importlib.metadata.version("drawbridge")
