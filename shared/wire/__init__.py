"""The protocol's messages as attrs classes; one module per subject. Pure."""
