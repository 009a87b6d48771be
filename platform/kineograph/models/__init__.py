"""Pure torch models: STDiT and DiT, ViT and ViViT, autoencoders, text encoders; their layers, sizes and costs, and
published weights as ours. They run where only torch is."""
