"""Pure torch diffusion: rectified flow and Gaussian processes, samplers, guidance, frame conditioning, text to video from
a checkpoint, and published checkpoints as ours."""
