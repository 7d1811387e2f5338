"""Every dataset of both papers as a SeqIO task; importing this registers them all and reads no data."""

from tasks import glue, superglue

__all__ = ["glue", "superglue"]
