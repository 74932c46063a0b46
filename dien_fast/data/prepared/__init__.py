"""Data prepared once and read from the disk: tables that do not fit into memory."""
