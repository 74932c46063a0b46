"""The built library lies in this folder."""
