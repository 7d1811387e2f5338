"""Every dataset of both papers as a SeqIO task; importing this registers them all and reads no data."""

from tasks import glue, mrqa, nli, pretraining, rainbow, spot, summarization, superglue, transfer
from tasks.reference_names import own_name

__all__ = [
    "glue",
    "mrqa",
    "nli",
    "own_name",
    "pretraining",
    "rainbow",
    "spot",
    "summarization",
    "superglue",
    "transfer",
]
