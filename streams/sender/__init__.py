"""The last stage: a draft passes the gate, becomes a mail, and ends in one outcome."""
