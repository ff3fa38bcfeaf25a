"""``mailtide audit``: the promises proved from the topics alone."""
