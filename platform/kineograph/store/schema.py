"""The tables of a curation run, and the one closed list of reasons for which something is rejected."""

from __future__ import annotations

from enum import Enum

import pyarrow as pa

SCHEMA_VERSION = 1


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
    # Sources and clips.
    EXACT_DUPLICATE = "exact_duplicate"
    """The same bytes as a source that is kept; ``duplicate_of`` names it."""
    # Clips.
    DURATION = "duration"
    """Shorter than the least length of a clip."""
    RESOLUTION = "resolution"
    """Fewer pixels on the short side than the threshold."""
    BLACK = "black"
    """Too large a share of black frames."""
    STATIC = "static"
    """Too large a share of frames equal to the one before."""
    MOTION_LOW = "motion_low"
    """Less motion than the threshold."""
    MOTION_HIGH = "motion_high"
    """More motion than the threshold."""
    NO_CAPTION = "no_caption"
    """The recipe demands captions and this clip has none."""
    NO_BUCKET = "no_bucket"
    """It fits no bucket without upscaling or without being too short for its frames."""
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
        ("analysis_s", pa.float64()),  # wall seconds of the analysis
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
        ("crop", pa.list_(pa.int32(), 4)),  # x, y, width, height in source pixels
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        # Signals. NaN where one was not measured.
        ("luma", pa.float32()),  # mean luma, 0..1
        ("black", pa.float32()),  # share of frames that are black, 0..1
        ("static", pa.float32()),  # share of frames that repeat the one before, 0..1
        ("motion", pa.float32()),  # mean optical flow, frame diagonals per second
        # The caption and where it came from.
        ("caption", pa.string()),
        ("caption_source", pa.string()),  # sidecar | ""
        # The decision.
        ("decision", pa.string()),  # keep | reject
        ("reason", pa.string()),  # Reason, or "" when kept
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
        ("text_embedding", TENSOR),  # (tokens, width)
        ("latent", TENSOR),  # null unless the recipe writes latents
        ("video", pa.binary()),  # mp4, null when only latents are written
        ("aesthetic", pa.float32()),
        ("motion", pa.float32()),
        ("source_uri", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
    ]
)
