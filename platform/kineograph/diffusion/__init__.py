"""Pure torch diffusion: rectified flow, its sampler, guidance, and text to video from a checkpoint."""
