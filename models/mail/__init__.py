"""From facts and words to a mail: slots, guard, gate, and the bytes that a server gets."""
