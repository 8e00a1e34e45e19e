"""Mistakes that a heterogeneous layout invites; `faults.py` plants them, the parity tests must see them."""

FAULTS = {
    "local count": "each replica divides its losses by its own number of label tokens",
    "missing reduction": "the encoder's replicas do not add up their gradients",
    "gradient scale": "the encoder's gradient is a mean over its replicas",
    "embedding gradient": "text embeddings of the other tensor-parallel shards get no gradient",
    "norm double counting": "the joint norm counts the encoder once per rank",
    "lost rows": "the first image row of each message returns without its gradient",
    "late document": "context-parallel ranks see the first key of the next chunk",
}
