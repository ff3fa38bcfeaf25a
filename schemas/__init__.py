"""What Mailtide's parts promise each other: events, topics, mail, releases, settings. Imports nothing of ours."""
