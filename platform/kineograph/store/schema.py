"""The tables of a curation run, and the one closed list of reasons for which something is rejected."""

from __future__ import annotations

from enum import Enum

import pyarrow as pa

SCHEMA_VERSION = 2


class Reason(str, Enum):
    """Why a source or a clip is not in the dataset."""

    # Sources: the file gave no frames that can be used.
    NOT_MEDIA = "not_media"
    """The container or codec is not in the allow-list, or the file is no media at all."""
    CORRUPT = "corrupt"
    """It opened, and no frame could be decoded."""
    UNREADABLE = "unreadable"
    """The file could not be read: permissions, an I/O error, it vanished."""
    TOO_LARGE = "too_large"
    """More bytes, pixels, seconds or streams than the limits allow."""
    TIMEOUT = "timeout"
    """Analysis passed its wall-clock or CPU limit and was killed."""
    CRASHED = "crashed"
    """The analysing process died (a signal, or out of its memory limit)."""
    FETCH_FAILED = "fetch_failed"
    """A remote file could not be brought here."""
    EXACT_DUPLICATE = "exact_duplicate"
    """The same bytes as a source that is kept; ``duplicate_of`` names it."""
    # Clips, in the order in which they are checked. A whole source can be a perceptual duplicate too.
    OUTSIDE_SPAN = "outside_span"
    """Not within the stretches that the manifest names."""
    TRANSITION = "transition"
    """Frames of a gradual transition between two shots."""
    DURATION = "duration"
    """Shorter than the least length of a clip."""
    RESOLUTION = "resolution"
    """Fewer pixels on the short side, without black bars, than the threshold."""
    ASPECT = "aspect"
    """Wider or taller than the recipe allows."""
    FPS = "fps"
    """Fewer frames per second than the threshold."""
    BLACK = "black"
    """Too large a share of black frames."""
    STATIC = "static"
    """Too large a share of frames equal to the one before."""
    MOTION_LOW = "motion_low"
    """Less motion than the threshold."""
    MOTION_HIGH = "motion_high"
    """More motion than the threshold."""
    BLUR = "blur"
    """More blurred than the threshold."""
    FLASHING = "flashing"
    """More flashes within a second than the threshold."""
    TEXT = "text"
    """Text covers more of the picture than the threshold."""
    UNSAFE = "unsafe"
    """The safety model is surer of nudity than the threshold."""
    AESTHETIC = "aesthetic"
    """A lower aesthetic score than the threshold."""
    LEARNED = "learned"
    """The classifier gives the wanted label less probability than the threshold."""
    NO_BUCKET = "no_bucket"
    """It fits no bucket without upscaling or without being too short for its frames."""
    PERCEPTUAL_DUPLICATE = "perceptual_duplicate"
    """Looks the same as what is kept of ``duplicate_of``, frame for frame."""
    SEMANTIC_DUPLICATE = "semantic_duplicate"
    """Shows the same as ``duplicate_of`` by its CLIP embedding."""
    NO_CAPTION = "no_caption"
    """The recipe demands captions and this clip has none."""
    CAPTION_MATCH = "caption_match"
    """Its caption says something else than it shows, by CLIP."""
    ENCODE_FAILED = "encode_failed"
    """It was analysed, and could not be decoded again when the clip was written."""


SOURCE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),  # SHA-256 of the file's bytes; of its uri where it cannot be read
        ("uri", pa.string()),
        ("media_type", pa.string()),  # image | video | "" when unknown
        ("container", pa.string()),
        ("codec", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),  # as shown: after rotation
        ("height", pa.int32()),
        ("fps", pa.float64()),  # mean rate, frames / seconds; 0 for an image
        ("frames", pa.int64()),  # decoded, not declared
        ("seconds", pa.float64()),
        ("status", pa.string()),  # ok | rejected
        ("reason", pa.string()),  # Reason, or "" when ok
        ("detail", pa.string()),  # one line: what the decoder said, or a warning on an ok source
        ("duplicate_of", pa.string()),  # source_id
        ("labels", pa.string()),  # JSON object: the further columns of its manifest
        ("analysis_s", pa.float64()),  # wall seconds of the analysis
        ("encode_s", pa.float64()),  # wall seconds of writing its clips, all sessions together
    ]
)

CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),  # hash of source_id and span
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("media_type", pa.string()),  # image | video
        ("shot", pa.int32()),  # index of its shot in the source
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),  # exclusive
        ("content", pa.list_(pa.int32(), 4)),  # x, y, width, height in source pixels: without black bars
        ("crop", pa.list_(pa.int32(), 4)),  # what is written; of a rejected clip the same as content
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        # Signals. NaN where one was not measured.
        ("luma", pa.float32()),  # mean luma, 0..1
        ("contrast", pa.float32()),  # mean over frames of the standard deviation of luma, 0..0.5
        ("saturation", pa.float32()),  # mean distance of the chroma planes from grey, 0..1
        ("black", pa.float32()),  # share of frames that are black, 0..1
        ("static", pa.float32()),  # share of frames that repeat the one before, 0..1
        ("motion", pa.float32()),  # mean optical flow, frame diagonals per second
        ("pan", pa.float32()),  # speed of the camera: of the median flow, frame diagonals per second
        ("pan_direction", pa.float32()),  # where the picture moves, degrees: 0 right, 90 up
        ("blur", pa.float32()),  # median over samples, 0 (sharp) .. 1
        ("flashing", pa.float32()),  # most flashes within any second
        ("text_area", pa.float32()),  # median over samples of the share of the picture under text, 0..1
        ("unsafe", pa.float32()),  # most over samples, 0..1
        ("aesthetic", pa.float32()),  # mean over samples, about 1..10
        ("learned", pa.float32()),  # probability of the wanted label, 0..1
        ("caption_match", pa.float32()),  # cosine of caption and picture, -1..1
        # The caption and where it came from.
        ("caption", pa.string()),
        ("caption_source", pa.string()),  # sidecar | manifest | model | measured | ""
        ("caption_model", pa.string()),  # who wrote it, when a model did
        ("caption_hash", pa.string()),  # binds clip, caption, source and model
        ("labels", pa.string()),  # JSON object: the further columns of its manifest
        # The decision.
        ("decision", pa.string()),  # keep | reject
        ("reason", pa.string()),  # Reason, or "" when kept: the first of failed
        ("failed", pa.list_(pa.string())),  # every check that it fails, in order
        ("value", pa.float64()),  # the measured value that decided
        ("threshold", pa.float64()),
        ("duplicate_of", pa.string()),  # clip_id
        ("bucket", pa.string()),  # HxWxF, or "" when rejected
        ("used_s", pa.float64()),  # seconds of the span that the bucket's frames cover; 0 when rejected
        ("thumbnail", pa.binary()),  # JPEG
    ]
)

TENSOR = pa.struct([("bytes", pa.binary()), ("dtype", pa.string()), ("shape", pa.list_(pa.int32()))])

SHARD_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("media_type", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float32()),  # of the written frames; 0 for an image
        ("caption", pa.string()),
        ("caption_source", pa.string()),
        ("labels", pa.string()),  # JSON object
        ("text_embedding", TENSOR),  # (tokens, width)
        ("latent", TENSOR),  # (C, T, H, W), null unless the recipe writes latents
        ("video", pa.binary()),  # mp4, null when only latents are written
        ("aesthetic", pa.float32()),
        ("motion", pa.float32()),
        ("source_uri", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
    ]
)
