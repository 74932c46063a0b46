"""Embedding tables that are divided by rows among several processes, by TorchRec.

Importing these modules needs no TorchRec; :class:`dien_fast.training.sharded.tables.ShardedTables` does.
"""
