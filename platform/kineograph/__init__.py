"""Kineograph: raw videos in, a graded text-to-video diffusion transformer out."""

__version__ = "0.1.0"
