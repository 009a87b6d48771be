"""Text-to-video diffusion on the latents of an autoencoder."""
