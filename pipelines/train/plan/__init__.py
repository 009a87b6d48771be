"""What is in a step: which clips, in which order, and which rank computes them. Numbers alone; no clip is read here."""
