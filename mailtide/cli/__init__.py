"""The ``mailtide`` command: arguments in, facts and tables out."""
