"""Autoencoders: of images frame by frame, or causal ones of video."""
