"""Pure torch models: layers, patches, STDiT, the autoencoder and the text encoder. They run where only torch is."""
