"""``mailtide demo``: a year of purchases to emails that a mail server accepted."""
