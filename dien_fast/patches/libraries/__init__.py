"""A file for each library: which of its classes are known, and how they are made fast."""
