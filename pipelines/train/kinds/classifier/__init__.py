"""Classifiers of images (ViT) and clips (ViViT)."""
