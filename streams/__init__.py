"""The online path, a folder a stage: intake, clusters, writer, sender. Here lies what they share: metrics, profiles, progress."""
